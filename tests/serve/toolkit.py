"""SageMaker's own inference toolkit on a package, in a process of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Toolkit", "toolkit"]

_LOOP = """
import base64, json, pathlib, sys
from sagemaker_inference.transformer import Transformer

class Context:
    def __init__(self, kind, accept):
        self.system_properties = {"model_dir": sys.argv[1]}
        self.request_processor = [self]
        self.properties, self.status = {"Content-Type": kind, "Accept": accept}, 200
    def get_request_properties(self): return self.properties
    def set_response_content_type(self, place, kind): pass
    def set_response_status(self, code, phrase): self.status = code

sys.path.insert(0, sys.argv[1] + "/code")
handler = None
if sys.argv[2:]:
    sys.path.append(sys.argv[2])
    from sagemaker_pytorch_serving_container.default_pytorch_inference_handler import DefaultPytorchInferenceHandler
    handler = DefaultPytorchInferenceHandler()
transformer = Transformer(handler)
for line in sys.stdin:
    asked = json.loads(line)
    context = Context(asked["kind"], asked["accept"])
    body = bytearray(base64.b64decode(asked["body"]))
    (answer,) = transformer.transform([{"body": body}], context)
    answer = answer.decode("latin-1") if isinstance(answer, bytes) else answer
    print(json.dumps({"status": context.status, "body": answer}), flush=True)
"""
"""What SageMaker's model server does with each request: it makes this context, and calls transform."""


class Toolkit:
    """A loaded package."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, body: bytes, kind: str, accept: str = "application/json") -> tuple[int, Any]:
        """Return the status and the answer, of JSON what it holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"kind": kind, "accept": accept, "body": base64.b64encode(body).decode()}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        is_json = said["status"] == 200 and accept == "application/json"
        return said["status"], json.loads(said["body"]) if is_json else said["body"]


@contextmanager
def toolkit(package: Path, folder: Path, *, pytorch: Path | None = None) -> Iterator[Toolkit]:
    """Unpack a model.tar.gz and answer requests, until the block ends.

    `pytorch` is a folder with sagemaker-pytorch-inference, whose defaults then stand for what a script lacks.
    """
    with tarfile.open(package) as archive:
        archive.extractall(folder / "model", filter="data")
    with (folder / "toolkit.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(folder / "model"), *([str(pytorch)] if pytorch else [])],
            cwd=folder, text=True,
            env={**os.environ, "SAGEMAKER_BASE_DIR": str(folder)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        yield Toolkit(process)
    finally:
        process.communicate()
        assert process.returncode == 0, (folder / "toolkit.log").read_text()
