"""The handler that everyone writes first: FastAPI, TorchScript, a list in JSON."""

import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
model = torch.jit.load(os.environ["MODEL"]).eval()
app = FastAPI()


class Request(BaseModel):
    inputs: list


@app.post("/predict")
async def predict(request: Request) -> dict:
    with torch.no_grad():
        return {"outputs": model(torch.tensor(request.inputs)).tolist()}
