"""Snippets of a model card that run as they are: a test runs each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...model.bundles import Bundle


def usage(repo: str, files: Mapping[str, Any], bundle: Bundle | None, revision: str | None) -> list[str]:
    """Return the card's section on how to load what is there; nothing where nothing can be loaded."""
    pin = f', revision="{revision}"' if revision else ""
    parts = []
    models = sorted(path for path in files if path.startswith("onnx/") and path.endswith(".onnx"))
    if models and bundle is not None:
        parts.append(_onnx(repo, models[0], bundle, pin, beside=f"{models[0]}_data" in files))
    if "model.safetensors" in files:
        parts.append(_safetensors(repo, pin))
    return [f"## Use\n\n{chr(10).join(parts)}"] if parts else []


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


def _safetensors(repo: str, pin: str) -> str:
    return f"""```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

weights = load_file(hf_hub_download("{repo}", "model.safetensors"{pin}))
```
"""
