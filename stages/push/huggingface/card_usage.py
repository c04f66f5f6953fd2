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
    from .facts import Facts

__all__ = ["usage"]

_ASKED = {"text": '"a text"', "picture": '"picture.jpg"', "sound": '"sound.wav"'}
_TASKS = {
    "text": ("feature-extraction", "fill-mask", "text-classification", "token-classification"),
    "picture": ("depth-estimation", "image-classification", "image-feature-extraction", "image-segmentation",
                "object-detection"),
    "sound": ("audio-classification",),
}  # fmt: skip


def usage(facts: Facts) -> list[str]:
    """Return the card's section on how to load what is there; nothing where nothing can be loaded."""
    models = sorted(path for path in facts.files if path.startswith("onnx/") and path.endswith(".onnx"))
    packages = sorted(
        path for path, file in facts.files.items() if path.endswith(".pt2") and aot.is_aot(file.path)
    )
    library = metadata.library(facts.config, facts.files)
    parts = []
    if models and facts.io is not None:
        parts.append(_served(facts, models[0], facts.io))
    if library == "transformers":
        parts.append(_transformers(facts))
    if library == "sentence-transformers":
        parts.append(_sentences(facts))
    if models and kind_of(facts.config):
        parts.append(_javascript(facts, models))
    if models and facts.bundle is not None:
        parts.append(_onnx(facts, models[0], facts.bundle))
    parts += [_aot(facts, path, aot.described(facts.files[path].path)) for path in packages]
    if library == "timm":
        parts.append(_timm(facts))
    elif library is None and "model.safetensors" in facts.files:
        parts.append(_safetensors(facts))
    parts = [part for part in parts if part]
    return [f"## Use\n\n{chr(10).join(parts)}"] if parts else []


def _served(facts: Facts, path: str, io: Mapping[str, Any]) -> str:
    pin = f" --revision {facts.revision}" if facts.revision else ""
    trust = " --trust" if spec.has_code(io) else ""
    return f"""```shell
hf download {facts.repo}{pin} --local-dir model
deploy-runner serve model/{path} --io model/io{trust}
```

{raw_io.request(io)}
"""


def _transformers(facts: Facts) -> str:
    kind = kind_of(facts.config)
    assert kind is not None
    reads = [("tokenizer", "AutoTokenizer", "tokenizer_config.json"),
             ("processor", "AutoImageProcessor", "preprocessor_config.json")]  # fmt: skip
    loads = [(name, auto) for name, auto, path in reads if path in facts.files and _reads(facts, name)]
    loads.append(("model", kind.auto))
    lines = [f'{name} = {auto}.from_pretrained("{facts.repo}"{_pin(facts)})' for name, auto in loads]
    return f"""```python
from transformers import {", ".join(sorted(auto for _, auto in loads))}

{chr(10).join(lines)}
```
"""


def _sentences(facts: Facts) -> str:
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{facts.repo}"{_pin(facts)})
embeddings = model.encode(["a text"])
```
"""


def _reads(facts: Facts, name: str) -> bool:
    """Say whether what is read so is a text, or a picture: a preprocessor may be one of sounds."""
    return name == "tokenizer" or facts.task in _TASKS["picture"]


def _javascript(facts: Facts, models: list[str]) -> str:
    """Return how transformers.js asks, in the first precision that it has a name for."""
    found = next((kind for kind, tasks in _TASKS.items() if facts.task in tasks), None)
    dtype = next((dtype for dtype, path in layout.dtypes() if path in models), None)
    if found is None or dtype is None:
        return ""
    options = {"dtype": dtype} | ({"revision": facts.revision} if facts.revision else {})
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in options.items())
    return f"""```js
import {{ pipeline }} from "@huggingface/transformers";

const model = await pipeline("{facts.task}", "{facts.repo}", {{ {given} }});
const answer = await model({_ASKED[found]});
```
"""


def _onnx(facts: Facts, path: str, bundle: Bundle) -> str:
    feeds = ", ".join(
        f'"{port.name}": np.zeros({_shape(port)}, dtype="{port.dtype}")' for port in bundle.inputs
    )
    beside = f"{path}_data"
    data = f'hf_hub_download("{facts.repo}", "{beside}"{_pin(facts)})\n' if beside in facts.files else ""
    first, config = _config(facts)
    return f"""```python
{first}import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download

{config}{data}session = onnxruntime.InferenceSession(hf_hub_download("{facts.repo}", "{path}"{_pin(facts)}))
outputs = session.run(None, {{{feeds}}})
```
"""


def _shape(port: Any) -> tuple[int, ...]:
    return tuple(1 if axis in port.dynamic else size for axis, size in enumerate(port.shape))


def _aot(facts: Facts, path: str, described: Mapping[str, Any]) -> str:
    feeds = ", ".join(
        f"torch.zeros({[1 if str(axis) in port['dynamic'] else n for axis, n in enumerate(port['shape'])]}, "
        f"dtype=torch.{port['dtype']})"
        for port in described.get("inputs", [])
    )
    if not feeds:
        return ""
    first, config = _config(facts)
    return f"""```python
{first}import os

os.environ["{aot.CHECK_INPUTS}"] = "1"  # Else it answers to another type or size with nonsense.

import torch
from huggingface_hub import hf_hub_download

{config}model = torch._inductor.aoti_load_package(hf_hub_download("{facts.repo}", "{path}"{_pin(facts)}))
outputs = model({feeds})
```
"""


def _timm(facts: Facts) -> str:
    at = f"@{facts.revision}" if facts.revision else ""
    return f"""```python
import timm

model = timm.create_model("hf-hub:{facts.repo}{at}", pretrained=True).eval()
```
"""


def _safetensors(facts: Facts) -> str:
    first, config = _config(facts)
    said = (
        f'\nWith the model\'s code: `CLASS.from_pretrained("{facts.repo}"{_pin(facts)})`.\n'
        if facts.mixin
        else ""
    )
    return f"""```python
{first}from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

{config}weights = load_file(hf_hub_download("{facts.repo}", "model.safetensors"{_pin(facts)}))
```
{said}"""


def _config(facts: Facts) -> tuple[str, str]:
    """Return the lines that read config.json: an import, and what comes after the imports."""
    if "config.json" not in facts.files:
        return "", ""
    path = f'hf_hub_download("{facts.repo}", "config.json"{_pin(facts)})'
    return "import json\n", f'with open({path}, encoding="utf-8") as file:\n    config = json.load(file)\n'


def _pin(facts: Facts) -> str:
    return f', revision="{facts.revision}"' if facts.revision else ""
