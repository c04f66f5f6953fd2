"""`convert`: a pipeline made on the fly, from a checkpoint to the formats that are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..store.files import write_atomic
from ..usercode.loading import split

__all__ = ["FORMATS", "write_pipeline"]

_MODEL = "${{ stages.model.outputs.model }}"

FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "safetensors": ("weights.weights", ("weights",)),
    "full": ("full.model", ("full",)),
    "torchscript": ("torchscript.model", ("torchscript",)),
    "script": ("script.model", ("script",)),
    "pt2": ("pt2.model", ("pt2",)),
    "onnx": ("onnx.model", ("onnx", "checked")),
    "fp16": ("fp16.model", ("onnx", "fp16")),
    "int8": ("int8.model", ("onnx", "int8")),
    "ptl": ("ptl.model", ("ptl",)),
    "pte": ("pte.model", ("pte",)),
    "sagemaker": ("sagemaker.package", ("onnx", "sagemaker")),
}
"""Format → the output that it is, and the stages that make it from the model."""


def write_pipeline(
    path: Path,
    checkpoint: str,
    formats: Sequence[str],
    *,
    factory: str,
    shape: Sequence[int],
    dtype: str,
    calibration: str | None,
) -> None:
    """Write the pipeline that converts a checkpoint to `formats`, replacing one of our own making.

    Paths are as given from the current folder, which `path` must lie in. Raises UsageError where
    something is missing, or `path` holds a pipeline that somebody wrote.
    """
    import yaml

    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r}", fix=f"the formats are {', '.join(FORMATS)}")
    head = "# Written by `deploy-runner convert`, which overwrites it: rename it to keep your changes.\n"
    if path.exists() and not path.read_text("utf-8", errors="replace").startswith(head):
        raise UsageError(f"{path} already exists", fix="choose another file with --pipeline")
    try:
        code, _ = split(factory)
    except ValueError as error:
        raise UsageError(str(error), fix="e.g. --factory model.py:build") from None
    places = [_inside(path, given) for given in (checkpoint, code, *([calibration] if calibration else []))]
    stages = _stages(places[0], f"{places[1]}:{factory.rpartition(':')[2]}", shape, dtype, places[2:])
    wanted = {"weights", *(() if set(formats) == {"safetensors"} else ("model",))}
    wanted |= {stage for name in formats for stage in FORMATS[name][1]}
    chosen = {name: stage for name, stage in stages.items() if name in wanted}
    body = yaml.safe_dump({"version": 1, "name": "convert", "stages": chosen}, sort_keys=False, width=110)
    write_atomic(path, (head + body).encode())


def _inside(pipeline: Path, given: str) -> str:
    """Return a path relative to the pipeline's folder."""
    place, folder = Path(given).resolve(), pipeline.resolve().parent
    if not place.exists():
        raise UsageError(f"{given} does not exist")
    if not place.is_relative_to(folder):
        raise UsageError(
            f"{given} is outside {folder}", fix="run the command in a folder that contains all files"
        )
    return place.relative_to(folder).as_posix()


def _stages(
    checkpoint: str, factory: str, shape: Sequence[int], dtype: str, calibration: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return every stage that a format may need, in the order of the data."""
    example = {"shape": list(shape)} | ({"dtype": dtype} if dtype != "float32" else {})
    onnx = "${{ stages.onnx.outputs.model }}"
    samples = {"samples": calibration[0]} if calibration and calibration[0].endswith(".npz") else {}
    int8 = {"uses": "onnx.quantize_dynamic", "inputs": {"model": onnx, "reference": _MODEL}}
    if calibration:
        # Reference cases of noise say nothing of a model whose ranges are those of pictures.
        reference = {"reference": _MODEL} if samples else {}
        int8 = {
            "uses": "onnx.quantize_static",
            "inputs": {"model": onnx, "calibration": calibration[0], **reference},
        }
    return {
        "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": checkpoint}},
        "model": {
            "uses": "model.prepare",
            "inputs": {"weights": "${{ stages.weights.outputs.weights }}", **samples},
            "with": {"factory": factory, "example": example},
        },
        "full": _from_model("torch.save_full"),
        "torchscript": _from_model("torch.trace"),
        "script": _from_model("torch.script"),
        "pt2": _from_model("torch.export"),
        "onnx": _from_model("onnx.export"),
        "checked": {"uses": "onnx.check", "inputs": {"model": onnx}},
        "fp16": {"uses": "onnx.float16", "inputs": {"model": onnx, "reference": _MODEL}},
        "int8": int8,
        "ptl": _from_model("mobile.lite"),
        "pte": _from_model("mobile.executorch"),
        "sagemaker": {"uses": "package.sagemaker", "inputs": {"model": onnx, "reference": _MODEL}},
    }


def _from_model(uses: str) -> dict[str, Any]:
    return {"uses": uses, "inputs": {"model": _MODEL}}
