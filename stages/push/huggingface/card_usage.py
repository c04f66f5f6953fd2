"""Snippets of a model card that run as they are: a test runs each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....server import aot
from ....server.raw import spec
from ...model.bundles import Bundle
from . import raw_io
from .content import Wanted


def usage(
    repo: str, files: Mapping[str, Wanted], bundle: Bundle | None, revision: str | None,
    io: Mapping[str, Any] | None = None,
) -> list[str]:  # fmt: skip
    """Return the card's section on how to load what is there; nothing where nothing can be loaded."""
    pin = f', revision="{revision}"' if revision else ""
    parts = []
    models = sorted(path for path in files if path.startswith("onnx/") and path.endswith(".onnx"))
    if models and io is not None:
        parts.append(_served(repo, models[0], revision, io))
    if models and bundle is not None:
        parts.append(_onnx(repo, models[0], bundle, pin, beside=f"{models[0]}_data" in files))
    for path in sorted(
        path for path, file in files.items() if path.endswith(".pt2") and aot.is_aot(file.path)
    ):
        parts.append(_aot(repo, path, aot.described(files[path].path), pin))
    if "model.safetensors" in files:
        parts.append(_safetensors(repo, pin))
    return [f"## Use\n\n{chr(10).join(parts)}"] if parts else []


def _served(repo: str, path: str, revision: str | None, io: Mapping[str, Any]) -> str:
    pin = f" --revision {revision}" if revision else ""
    trust = " --trust" if spec.has_code(io) else ""
    return f"""```shell
hf download {repo}{pin} --local-dir model
deploy-runner serve model/{path} --io model/io{trust}
```

{raw_io.request(io)}
"""


def _onnx(repo: str, path: str, bundle: Bundle, pin: str, *, beside: bool) -> str:
    feeds = ", ".join(
        f'"{port.name}": np.zeros({_shape(port)}, dtype="{port.dtype}")' for port in bundle.inputs
    )
    data = f'hf_hub_download("{repo}", "{path}_data"{pin})\n' if beside else ""
    return f"""```python
import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download

{data}session = onnxruntime.InferenceSession(hf_hub_download("{repo}", "{path}"{pin}))
outputs = session.run(None, {{{feeds}}})
```
"""


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(1 if axis in port.dynamic else size for axis, size in enumerate(port.shape))


def _aot(repo: str, path: str, described: Mapping[str, Any], pin: str) -> str:
    feeds = ", ".join(
        f"torch.zeros({[1 if str(axis) in port['dynamic'] else n for axis, n in enumerate(port['shape'])]}, "
        f"dtype=torch.{port['dtype']})"
        for port in described.get("inputs", [])
    )
    if not feeds:
        return ""
    return f"""```python
import os

os.environ["{aot.CHECK_INPUTS}"] = "1"  # Else it answers to another type or size with nonsense.

import torch
from huggingface_hub import hf_hub_download

model = torch._inductor.aoti_load_package(hf_hub_download("{repo}", "{path}"{pin}))
outputs = model({feeds})
```
"""


def _safetensors(repo: str, pin: str) -> str:
    return f"""```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

weights = load_file(hf_hub_download("{repo}", "model.safetensors"{pin}))
```
"""
