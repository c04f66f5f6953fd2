"""A server that does nothing but answer, by a model once: what HTTP alone costs on uvicorn."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime

with np.load(Path(__file__).parent.parent.parent / "examples/digits/heldout.npz") as data:
    image = next(iter(data.values()))[:1]
(logits,) = onnxruntime.InferenceSession(os.environ["MODEL"]).run(None, {"image": image})
ANSWER = json.dumps({"outputs": {"output": logits.tolist()}}).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def app(scope, receive, send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
