"""Triton's backend `onnxruntime` as a Python-based backend: the server's own wheel lacks the one in C++.

Like that one it refuses a configuration that says other names, types or numbers of dimensions than the file.
Runs inside Triton: https://github.com/triton-inference-server/backend/blob/main/docs/python_based_backends.md
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = os.environ["TEST_PACKAGES"].split(":")  # Triton sets PYTHONPATH itself.

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as utils  # type: ignore[import-not-found]  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.inputs = [row["name"] for row in config["input"]]
        self.outputs = [row["name"] for row in config["output"]]
        batched = int(config["max_batch_size"] > 0)
        ports = ((config["input"], self.session.get_inputs()), (config["output"], self.session.get_outputs()))
        for said, there in ports:
            wanted = {row["name"]: (row["data_type"], len(row["dims"]) + batched) for row in said}
            found = {port.name: (_TYPES[port.type], len(port.shape)) for port in there}
            if wanted != found:
                raise utils.TritonModelException(f"the configuration says {wanted}, the file {found}")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = {n: utils.get_input_tensor_by_name(request, n).as_numpy() for n in self.inputs}
        given = {n: np.char.decode(a.astype(bytes)) if a.dtype == object else a for n, a in given.items()}
        answers = self.session.run(self.outputs, given)
        rows = zip(self.outputs, answers, strict=True)
        return utils.InferenceResponse([utils.Tensor(name, np.asarray(array)) for name, array in rows])


_TYPES = {
    "tensor(float)": "TYPE_FP32", "tensor(double)": "TYPE_FP64", "tensor(float16)": "TYPE_FP16",
    "tensor(int64)": "TYPE_INT64", "tensor(int32)": "TYPE_INT32", "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8", "tensor(bool)": "TYPE_BOOL", "tensor(string)": "TYPE_STRING",
}  # fmt: skip
