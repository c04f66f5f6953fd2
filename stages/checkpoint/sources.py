"""Tell what somebody's file or folder is, by its content."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import StageError

from . import folders

if TYPE_CHECKING:
    import onnx

Kind = Literal["transformers", "onnx", "weights"]

_JSON_BYTES = 8 << 20
_HEAD_BYTES = 16
_ARCHIVE = "MAR-INF/MANIFEST.json"
"""What TorchServe's .mar files contain."""
_IR_VERSION = b"\x08"
"""The first field of an ONNX ModelProto, which every exporter writes first."""


def kind(path: Path) -> Kind:
    """Return what it is. Raises StageError for what has no model in it that a stage reads."""
    if path.is_dir():
        if "model_type" in config(path) and not (path / folders.ADAPTER).is_file():
            return "transformers"
        return "onnx" if _has_onnx_only(path) else "weights"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if path.suffix == ".onnx" or (head.startswith(_IR_VERSION) and head[8:9] != b"{"):  # Of safetensors.
        return "onnx"
    if zipfile.is_zipfile(path):
        _refuse_archive(path)
    return "weights"


def config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Return a folder's configuration, or nothing where there is none that can be read."""
    try:
        with (folder / name).open("rb") as file:
            found = json.loads(file.read(_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def base_of(folder: Path) -> str:
    """Return the name of the model that a LoRA adapter was trained on."""
    return str(config(folder, folders.ADAPTER).get("base_model_name_or_path") or "")


def of_transformers(folder: Path) -> dict[str, Any]:
    """Return what a save_pretrained folder says of its model."""
    said = config(folder)
    named = said.get("architectures") or [None]
    sentences = (folder / "modules.json").is_file()
    return {
        "class": named[0],
        "model_type": said["model_type"],
        "task": "sentence-similarity" if sentences else None,
        "labels": len(said["id2label"]) if isinstance(said.get("id2label"), dict) else None,
    }


def of_onnx(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what an ONNX file says of itself: opset, inputs and outputs with their sizes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {
        "opset": max((i.version for i in model.opset_import if not i.domain), default=0),
        "inputs": {v.name: _sizes(v) for v in model.graph.input if v.name not in weights},
        "outputs": {v.name: _sizes(v) for v in model.graph.output},
    }


def _sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in dims]


def _has_onnx_only(folder: Path) -> bool:
    """Say whether ONNX is what the folder is for: a checkpoint that lies beside it goes first."""
    files = list(folder.glob("*.onnx"))
    return len(files) == 1 and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin"))


def _refuse_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if _ARCHIVE not in archive.namelist():
            return
        try:
            said = json.loads(archive.read(_ARCHIVE)[:_JSON_BYTES])["model"]
            weights, code = said.get("serializedFile"), said.get("modelFile")
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
            weights = code = None
    factory = f" with --factory {code}:CLASS" if isinstance(code, str) else ""
    raise StageError("the file is an archive of TorchServe",
                     fix=f"unzip it, and start from {weights or 'what it contains'}{factory}")  # fmt: skip
