"""Answer requests at an Inference Endpoint, which calls EndpointHandler.

`inputs` is a text, a picture (the toolkit opens it; in JSON its bytes in base64), the bytes of a sound,
lists of them, or tensors: {NAME: nested lists}, or one input's samples. With io/ beside the model the answer
has the form of the Hub's task: https://huggingface.co/docs/inference-providers/tasks
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


class EndpointHandler:
    """What the endpoint makes once, and asks for each request."""

    def __init__(self, path: str = "") -> None:
        folder = str(path) or HERE
        self._code = _inference(folder)
        with open(os.path.join(folder, "model.json"), encoding="utf-8") as file:
            model = json.load(file)["file"]
        if not os.path.isfile(os.path.join(folder, model)):
            raise ValueError(f"{model} was not downloaded: set the endpoint's framework to `custom`")
        self._model = self._code.model_fn(folder)

    def __call__(self, data: dict[str, Any]) -> Any:
        """Return the answer to `data["inputs"]`. Raises ValueError for what the model doesn't take."""
        body, kind = self._body(data.get("inputs", data))
        try:
            found = self._code.predict_fn(self._code.input_fn(body, kind), self._model)
            answer = json.loads(self._code.output_fn(found, "application/json"))
        except self._code.Refused as error:
            raise ValueError(error.message) from None
        if not isinstance(found, self._code.Ready):
            return answer
        if "predictions" in answer:
            return [_of_task(one) for one in answer["predictions"]]
        return _of_task(answer)

    def _body(self, inputs: Any) -> tuple[bytes, str]:
        """Return the body and the content type of a request that says the same."""
        if hasattr(inputs, "save"):
            data = io.BytesIO()
            exif = inputs.info.get("exif")
            inputs.save(data, "PNG", **({"exif": exif} if exif else {}))
            return data.getvalue(), "image/png"
        if isinstance(inputs, (bytes, bytearray)):
            return bytes(inputs), "application/octet-stream"
        names = {port["name"] for port in self._model["described"]["inputs"]}
        first = inputs[0] if isinstance(inputs, list) and inputs else inputs
        fields = isinstance(first, dict) and not names >= set(first)
        return json.dumps({"instances" if fields else "inputs": inputs}).encode(), "application/json"


def _inference(folder: str) -> Any:
    spec = importlib.util.spec_from_file_location("inference", os.path.join(folder, "code", "inference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _of_task(answer: Any) -> Any:
    """Return what was answered in the form of the Hub's task."""
    if not isinstance(answer, dict):
        return answer
    if "classes" in answer and "png" not in answer:
        return answer["classes"]
    if "objects" in answer:
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            {**found, "box": dict(zip(corners, found["box"], strict=True))} for found in answer["objects"]
        ]
    return answer.get("embedding", answer)
