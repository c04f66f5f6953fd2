"""Lay a repository out as the Hub's users expect it.

`model.safetensors` and `config.json` at the top, as transformers has them; ONNX below `onnx/`, under the
names by which transformers.js (and optimum) find a precision: `onnx/model.onnx`, `onnx/model_fp16.onnx`,
`onnx/model_int8.onnx`, `onnx/model_quantized.onnx`… Source of the suffixes: DEFAULT_DTYPE_SUFFIX_MAPPING in
https://github.com/huggingface/transformers.js/blob/main/packages/transformers/src/utils/dtypes.js
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from deploy_runner.sdk import StageError

from ...model import protos
from .placed import Placed

_SUFFIXES = {
    "model": "", "fp32": "", "float32": "", "fp16": "_fp16", "float16": "_fp16", "int8": "_int8",
    "uint8": "_uint8", "q8": "_quantized", "quantized": "_quantized", "q4": "_q4", "q4f16": "_q4f16",
    "bnb4": "_bnb4",
}  # fmt: skip


def onnx_files(models: Mapping[str, Path], workdir: Path) -> dict[str, Placed]:
    """Return the files of ONNX models by their path; two for one path are refused."""
    files: dict[str, Placed] = {}
    names: dict[str, str] = {}
    for name, model in models.items():
        path = onnx_path(name)
        if path in names:
            raise StageError(
                f"the models {names[path]!r} and {name!r} have the same path {path}", fix="rename one"
            )
        names[path] = name
        found = _one_model(path, model, workdir)
        files |= {place: Placed(file, f"models/{name}") for place, file in found.items()}
    return files


def onnx_path(name: str) -> str:
    """Return where the model of this name goes: a precision's own name, or `onnx/model_NAME.onnx`."""
    stem = re.sub(r"\W+", "_", name).strip("_")
    return f"onnx/model{_SUFFIXES.get(stem.lower(), f'_{stem}')}.onnx"


def dtypes() -> list[tuple[str, str]]:
    """Return transformers.js' names of precisions with their paths, the most exact first."""
    return [
        (name, onnx_path(name)) for name in ("fp32", "fp16", "q8", "int8", "uint8", "q4", "q4f16", "bnb4")
    ]


def _one_model(path: str, model: Path, workdir: Path) -> dict[str, Path]:
    file = protos.onnx_file(model)
    data = file.with_name(protos.DATA_NAME)
    if not data.is_file():
        return {path: file}
    # transformers.js looks for `model.onnx_data`, and the model names its data itself.
    beside = f"{path}_data"
    renamed = workdir / path
    renamed.parent.mkdir(parents=True, exist_ok=True)
    _point_to(file, Path(beside).name, renamed)
    return {path: renamed, beside: data}


def _point_to(file: Path, data_name: str, target: Path) -> None:
    """Write a model again, its external data under another name; the data itself is not read."""
    proto = protos.load_proto(file, weights=False)
    for tensor in protos.all_tensors(proto.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_name
    target.write_bytes(proto.SerializeToString(deterministic=True))


def further_files(files: Mapping[str, Path]) -> dict[str, Placed]:
    """Return further files by their path; one that leaves the repository is refused."""
    for path in files:
        if path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
            raise StageError(f"files: {path!r} is not a path inside a repository", fix="e.g. `docs/data.md`")
    return {path: Placed(file, f"files/{path}") for path, file in files.items()}
