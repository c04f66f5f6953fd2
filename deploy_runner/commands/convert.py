"""`convert`: a pipeline made on the fly, from a checkpoint to the formats that are named."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from ..errors import StoreError, UsageError
from ..store.files import write_atomic
from ..types import RunOptions
from ..usercode.loading import split
from .downloads import Needed, bring
from .options import Argument, JsonResult, LogSwitch, Option, QuietSwitch, to_stderr, whole_numbers
from .running import View, run_and_show

if TYPE_CHECKING:
    from ..api import Pipeline

__all__ = ["FORMATS", "Convert"]

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


class Convert(NamedTuple):
    """Convert a checkpoint with a generated pipeline."""

    checkpoint: Annotated[str, Argument("the trained checkpoint")]
    to: Annotated[str, Option(f"any of {', '.join(FORMATS)}", "onnx,int8,ptl")]
    factory: Annotated[str, Option("the function that builds your nn.Module", "FILE.py:NAME")]
    shape: Annotated[Sequence[int], Option("the shape of one example input", "1,3,224,224", whole_numbers)]
    dtype: Annotated[str, Option("the example's element type (default: float32)", "TYPE")] = "float32"
    calibration: Annotated[
        str | None, Option("samples for int8: an .npz (also used as reference cases) or pictures", "PATH")
    ] = None
    output: Annotated[str, Option("where the results go (default: converted)", "FOLDER")] = "converted"
    pipeline: Annotated[str, Option("the pipeline to write (default: convert.yaml)", "FILE")] = "convert.yaml"
    json: JsonResult = False
    log: LogSwitch = False
    quiet: QuietSwitch = False

    def __call__(self) -> int:
        """Write a pipeline for the formats, run it, and copy what it made into a folder.

        A format that fails doesn't keep the others from being made.
        """
        from .. import api

        formats = [name.strip() for name in self.to.split(",") if name.strip()]
        path, folder = Path(self.pipeline), Path(self.output)
        _write_pipeline(
            path, self.checkpoint, formats,
            factory=self.factory, shape=self.shape, dtype=self.dtype, calibration=self.calibration,
        )  # fmt: skip
        pipeline = api.load(path, note=None if self.quiet else to_stderr)
        places = {}
        for name in formats:
            stage, output = FORMATS[name][0].split(".")
            place = folder / name / Path(pipeline.graph.stages[stage].outputs[output].path).name
            if place.exists():
                raise UsageError(f"{place} already exists", fix="choose another folder with --output")
            places[stage, output] = place
        record = run_and_show(pipeline, [], RunOptions(), View(self.json, self.log, self.quiet))
        lost: list[StoreError] = []
        with pipeline.store.hold():
            for (stage, output), place in places.items():
                artifact = record.artifacts(stage).get(output)
                if artifact is not None:
                    rebuild = f"deploy-runner run {shlex.quote(self.pipeline)} {stage}"
                    needed = Needed(artifact, stage, str(record.stages[stage]["key"]), rebuild)
                    try:
                        self._copy(pipeline, needed, place)
                    except StoreError as error:
                        lost.append(error)
        if lost:
            raise StoreError("\n".join(map(str, lost)))
        return record.exit_code

    def _copy(self, pipeline: Pipeline, needed: Needed, place: Path) -> None:
        bring(pipeline.store, [needed], quiet=self.quiet)
        place.parent.mkdir(parents=True, exist_ok=True)
        pipeline.store.materialise(needed.artifact, place)
        if not self.quiet:
            print(place, file=sys.stderr if self.json else sys.stdout)


def _write_pipeline(
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
