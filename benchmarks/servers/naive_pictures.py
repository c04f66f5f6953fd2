"""The handler that everyone writes first for pictures: FastAPI, Pillow, torchvision's transforms."""

import io
import os

import numpy as np
import onnxruntime
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision import transforms

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
session = onnxruntime.InferenceSession(os.environ["MODEL"], options)
prepare = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict:
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    (logits,) = session.run(None, {"x": prepare(image)[None].numpy()})
    scores = np.exp(logits[0] - logits[0].max())
    return {"prediction": int(scores.argmax()), "score": float(scores.max() / scores.sum())}
