"""Scripts for SageMaker as their users write them: none was written for this project's packages."""

from __future__ import annotations

__all__ = ["FOUR", "ONE", "TRANSFORM"]

ONE = """
import os
from dataclasses import dataclass

import torch

@dataclass
class Settings:
    file: str = "model.pt"

def model_fn(model_dir):
    model = torch.jit.load(os.path.join(model_dir, Settings().file), map_location="cpu")
    return model.eval()
"""
"""model_fn alone: the toolkit's defaults read and answer."""

FOUR = """
import json
import logging
import os
import sys

import torch

logger = logging.getLogger(__name__)
logger.addHandler(logging.StreamHandler(sys.stdout))

def model_fn(model_dir):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with open(os.path.join(model_dir, "model.pt"), "rb") as f:
        model = torch.jit.load(f, map_location=device)
    logger.info("Done loading model")
    return model.to(device).eval()

def input_fn(request_body, request_content_type):
    assert request_content_type == "application/json"
    data = json.loads(request_body)["inputs"]
    return torch.tensor(data, dtype=torch.float32)

def predict_fn(input_object, model):
    with torch.no_grad():
        return model(input_object)

def output_fn(predictions, content_type):
    assert content_type == "application/json"
    return json.dumps(predictions.cpu().numpy().tolist())
"""
"""All four, in the manner of the PyTorch examples of amazon-sagemaker-examples."""

TRANSFORM = """
import json
import os

import numpy as np
import onnxruntime as ort

def model_fn(model_dir, context=None):
    return ort.InferenceSession(os.path.join(model_dir, "model.onnx"))

def transform_fn(session, data, input_content_type, output_content_type):
    batch = np.array(json.loads(data), dtype="float32")
    (scores,) = session.run(None, {session.get_inputs()[0].name: batch})
    return json.dumps({"predictions": scores.tolist()}), output_content_type
"""
"""transform_fn, by onnxruntime, with requests and answers in TensorFlow Serving's manner."""
