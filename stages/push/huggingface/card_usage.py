"""Snippets of a model card that run as they are: a test runs each of them.

Each fetches config.json, by which the Hub counts downloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ....server import aot
from ....server.raw import spec
from . import layout, metadata, raw_io
from .pretrained import kind_of

if TYPE_CHECKING:
    from ...model.bundles import Bundle
    from .card import Card

__all__ = ["usage"]

_ASKED = {"text": '"a text"', "picture": '"picture.jpg"', "sound": '"sound.wav"'}
_TASKS = {
    "text": ("feature-extraction", "fill-mask", "text-classification", "token-classification"),
    "picture": ("depth-estimation", "image-classification", "image-feature-extraction", "image-segmentation",
                "object-detection"),
    "sound": ("audio-classification",),
}  # fmt: skip


def usage(card: Card) -> list[str]:
    """Return the card's section on how to load what is there; nothing where nothing can be loaded."""
    models = sorted(path for path in card.files if path.startswith("onnx/") and path.endswith(".onnx"))
    packages = sorted(
        path for path, file in card.files.items() if path.endswith(".pt2") and aot.is_aot(file.path)
    )
    library = metadata.library(card.config, card.files)
    parts = []
    if models and card.io is not None:
        parts.append(_served(card, models[0], card.io))
    if library in ("transformers", "sentence-transformers"):
        parts.append(_transformers(card))
    if models and kind_of(card.config):
        parts.append(_javascript(card, models))
    if models and card.bundle is not None:
        parts.append(_onnx(card, models[0], card.bundle))
    parts += [_aot(card, path, aot.described(card.files[path].path)) for path in packages]
    if library == "timm":
        parts.append(_timm(card))
    elif library is None and "model.safetensors" in card.files:
        parts.append(_safetensors(card))
    parts = [part for part in parts if part]
    return [f"## Use\n\n{chr(10).join(parts)}"] if parts else []


def _served(card: Card, path: str, io: Mapping[str, Any]) -> str:
    pin = f" --revision {card.revision}" if card.revision else ""
    trust = " --trust" if spec.has_code(io) else ""
    return f"""```shell
hf download {card.repo}{pin} --local-dir model
deploy-runner serve model/{path} --io model/io{trust}
```

{raw_io.request(io)}
"""


def _transformers(card: Card) -> str:
    kind = kind_of(card.config)
    assert kind is not None
    reads = [("tokenizer", "AutoTokenizer", "tokenizer_config.json"),
             ("processor", "AutoImageProcessor", "preprocessor_config.json")]  # fmt: skip
    loads = [(name, auto) for name, auto, path in reads if path in card.files and _reads(card, name)]
    loads.append(("model", kind.auto))
    lines = [f'{name} = {auto}.from_pretrained("{card.repo}"{_pin(card)})' for name, auto in loads]
    return f"""```python
from transformers import {", ".join(sorted(auto for _, auto in loads))}

{chr(10).join(lines)}
```
"""


def _reads(card: Card, name: str) -> bool:
    """Say whether what is read so is a text, or a picture: a preprocessor may be one of sounds."""
    return name == "tokenizer" or card.task in _TASKS["picture"]


def _javascript(card: Card, models: list[str]) -> str:
    """Return how transformers.js asks, in the first precision that it has a name for."""
    found = next((kind for kind, tasks in _TASKS.items() if card.task in tasks), None)
    dtype = next((dtype for dtype, path in layout.dtypes() if path in models), None)
    if found is None or dtype is None:
        return ""
    options = {"dtype": dtype} | ({"revision": card.revision} if card.revision else {})
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in options.items())
    return f"""```js
import {{ pipeline }} from "@huggingface/transformers";

const model = await pipeline("{card.task}", "{card.repo}", {{ {given} }});
const answer = await model({_ASKED[found]});
```
"""


def _onnx(card: Card, path: str, bundle: Bundle) -> str:
    feeds = ", ".join(
        f'"{port.name}": np.zeros({_shape(port)}, dtype="{port.dtype}")' for port in bundle.inputs
    )
    beside = f"{path}_data"
    data = f'hf_hub_download("{card.repo}", "{beside}"{_pin(card)})\n' if beside in card.files else ""
    first, config = _config(card)
    return f"""```python
{first}import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download

{config}{data}session = onnxruntime.InferenceSession(hf_hub_download("{card.repo}", "{path}"{_pin(card)}))
outputs = session.run(None, {{{feeds}}})
```
"""


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(1 if axis in port.dynamic else size for axis, size in enumerate(port.shape))


def _aot(card: Card, path: str, described: Mapping[str, Any]) -> str:
    feeds = ", ".join(
        f"torch.zeros({[1 if str(axis) in port['dynamic'] else n for axis, n in enumerate(port['shape'])]}, "
        f"dtype=torch.{port['dtype']})"
        for port in described.get("inputs", [])
    )
    if not feeds:
        return ""
    first, config = _config(card)
    return f"""```python
{first}import os

os.environ["{aot.CHECK_INPUTS}"] = "1"  # Else it answers to another type or size with nonsense.

import torch
from huggingface_hub import hf_hub_download

{config}model = torch._inductor.aoti_load_package(hf_hub_download("{card.repo}", "{path}"{_pin(card)}))
outputs = model({feeds})
```
"""


def _timm(card: Card) -> str:
    at = f"@{card.revision}" if card.revision else ""
    return f"""```python
import timm

model = timm.create_model("hf-hub:{card.repo}{at}", pretrained=True).eval()
```
"""


def _safetensors(card: Card) -> str:
    first, config = _config(card)
    mixin = card.bundle is not None and card.bundle.hub_config is not None
    said = f'\nWith the model\'s code: `CLASS.from_pretrained("{card.repo}"{_pin(card)})`.\n' if mixin else ""
    return f"""```python
{first}from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

{config}weights = load_file(hf_hub_download("{card.repo}", "model.safetensors"{_pin(card)}))
```
{said}"""


def _config(card: Card) -> tuple[str, str]:
    """Return the lines that read config.json: an import, and what comes after the imports."""
    if "config.json" not in card.files:
        return "", ""
    path = f'hf_hub_download("{card.repo}", "config.json"{_pin(card)})'
    return "import json\n", f'with open({path}, encoding="utf-8") as file:\n    config = json.load(file)\n'


def _pin(card: Card) -> str:
    return f', revision="{card.revision}"' if card.revision else ""
