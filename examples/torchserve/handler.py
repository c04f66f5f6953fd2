"""What was the handler of a TorchServe archive: the bodies of its methods, as functions of one sample."""

import io
import json
import pathlib

import torch
from PIL import Image
from torchvision import transforms

image_processing = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])


def preprocess(data):
    return image_processing(Image.open(io.BytesIO(data)).convert("L"))


def postprocess(outputs):
    names = json.loads(pathlib.Path(__file__).with_name("index_to_name.json").read_text())
    scores = torch.softmax(torch.from_numpy(outputs["output"]), 0)
    best = scores.topk(5)
    return {names[str(i)]: p for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}


def prepare(path):
    return preprocess(pathlib.Path(path).read_bytes())
