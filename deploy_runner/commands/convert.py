"""`convert`: a pipeline made on the fly, from a trained model to the formats that are named."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from ..errors import StoreError, UsageError, closest_path
from ..store.files import write_atomic
from ..types import RunOptions
from ..usercode.loading import is_file, split
from .downloads import Needed, bring
from .looking import Asked, Factory, Found, Kwargs, ModelPath, Shape, TrustSwitch, look
from .options import JsonResult, LogSwitch, Option, QuietSwitch, to_stderr
from .running import View, run_and_show
from .starting import MODEL, Stages, model_stages, weights_stage

if TYPE_CHECKING:
    from ..api import Pipeline

__all__ = ["FORMATS", "Convert"]

_ONNX = "${{ stages.onnx.outputs.model }}"
_EXPORTED = "onnx.model"

FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "safetensors": ("weights.weights", ("weights",)),
    "full": ("full.model", ("full",)),
    "torchscript": ("torchscript.model", ("torchscript",)),
    "script": ("script.model", ("script",)),
    "pt2": ("pt2.model", ("pt2",)),
    "aot": ("aot.model", ("aot",)),
    "onnx": (_EXPORTED, ("onnx", "checked")),
    "fp16": ("fp16.model", ("onnx", "fp16")),
    "int8": ("int8.model", ("onnx", "int8")),
    "ptl": ("ptl.model", ("ptl",)),
    "pte": ("pte.model", ("pte",)),
    "openvino": ("openvino.model", ("onnx", "openvino")),
    "coreml": ("coreml.model", ("coreml",)),
    "sagemaker": ("sagemaker.package", ("onnx", "sagemaker")),
    "triton": ("triton.repository", ("onnx", "triton")),
}
"""Format → the output that it is, and the stages that make it from the model."""


class Convert(NamedTuple):
    """Convert a trained model with a generated pipeline."""

    path: ModelPath
    to: Annotated[str, Option(f"any of {', '.join(FORMATS)}", "onnx,int8,ptl")]
    factory: Factory = None
    kwargs: Kwargs = None
    shape: Shape = None
    dtype: Annotated[str, Option("the example's element type (default: float32)", "TYPE")] = "float32"
    calibration: Annotated[
        str | None, Option("samples for int8: an .npz (also used as reference cases) or pictures", "PATH")
    ] = None
    trust: TrustSwitch = False
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
        outputs = self._write(path, formats)
        pipeline = api.load(path, note=None if self.quiet else to_stderr)
        places = {}
        for name in formats:
            stage, output = outputs[name].split(".")
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

    def _write(self, path: Path, formats: Sequence[str]) -> dict[str, str]:
        """Write the pipeline that converts to `formats`, replacing one of our own making.

        Paths are as given from the current folder, which `path` must lie in. Returns format → the output
        that it is. Raises UsageError where something is missing, or `path` holds a pipeline that somebody
        wrote.
        """
        import yaml

        for name in formats:
            if name not in FORMATS:
                raise UsageError(f"unknown format {name!r}", fix=f"the formats are {', '.join(FORMATS)}")
        head = "# Written by `deploy-runner convert`, which overwrites it: rename it to keep your changes.\n"
        if path.exists() and not path.read_text("utf-8", errors="replace").startswith(head):
            raise UsageError(f"{path} already exists", fix="choose another file with --pipeline")
        calibration = _inside(path, self.calibration) if self.calibration else None
        found = self._found(path, formats)
        if set(formats) == {"safetensors"} and found.kind == "weights":
            stages: Stages = {"weights": weights_stage(found)}
        else:
            stages = _conversions(found, calibration)
        outputs = {name: FORMATS[name] for name in formats}
        if found.kind == "onnx":
            stages, outputs = _of_onnx(stages), {n: _without_export(f) for n, f in outputs.items()}
        wanted = {"weights", "model"} | {stage for _, needed in outputs.values() for stage in needed}
        for name, (output, _) in outputs.items():
            if output.partition(".")[0] not in stages:
                raise UsageError(f"{self.path} can't become {name}", fix="start from the model's checkpoint")
        chosen = {name: stage for name, stage in stages.items() if name in wanted}
        body = yaml.safe_dump({"version": 1, "name": "convert", "stages": chosen}, sort_keys=False, width=110)
        write_atomic(path, (head + body).encode())
        return {name: output for name, (output, _) in outputs.items()}

    def _found(self, path: Path, formats: Sequence[str]) -> Found:
        """Return what there is to convert: as the user says, who names all that it takes, or as it looks."""
        place = _inside(path, self.path)
        factory = None
        if self.factory is not None:
            try:
                code, name = split(self.factory)
            except ValueError as error:
                raise UsageError(str(error), fix="e.g. --factory model.py:build") from None
            factory = f"{_inside(path, code)}:{name}" if is_file(code) else self.factory
            if self.shape is not None and not self.trust:
                dtype = {"dtype": self.dtype} if self.dtype != "float32" else {}
                example = {"shape": list(self.shape), **dtype}
                fit = {"kwargs": dict(self.kwargs or {}), "example": example, "dynamic": None}
                return Found(place, {"kind": "weights", "module": ""}, factory, fit)
        return look(
            path.absolute().parent, Path(self.path), Asked(factory, self.kwargs or {}, self.shape, self.trust)
        )

    def _copy(self, pipeline: Pipeline, needed: Needed, place: Path) -> None:
        bring(pipeline.store, [needed], quiet=self.quiet)
        place.parent.mkdir(parents=True, exist_ok=True)
        pipeline.store.materialise(needed.artifact, place)
        if not self.quiet:
            print(place, file=sys.stderr if self.json else sys.stdout)


def _inside(pipeline: Path, given: str) -> str:
    """Return a path relative to the pipeline's folder."""
    place, folder = Path(given).resolve(), pipeline.resolve().parent
    if not place.exists():
        raise UsageError(f"{given} does not exist", fix=closest_path(given))
    if not place.is_relative_to(folder):
        raise UsageError(
            f"{given} is outside {folder}", fix="run the command in a folder that contains all files"
        )
    return place.relative_to(folder).as_posix()


def _conversions(found: Found, calibration: str | None) -> Stages:
    """Return every stage that a format of what was found may need, in the order of the data."""
    real = calibration if calibration and calibration.endswith(".npz") else None
    stages = model_stages(found, samples=real)
    int8 = {"uses": "onnx.quantize_dynamic", "inputs": {"model": _ONNX, "reference": MODEL}}
    if calibration:
        # Reference cases of noise say nothing of a model whose ranges are those of pictures.
        reference = {"reference": MODEL} if real else {}
        int8 = {
            "uses": "onnx.quantize_static",
            "inputs": {"model": _ONNX, "calibration": calibration, **reference},
        }
    made = {
        "full": _from_model("torch.save_full"),
        "torchscript": _from_model("torch.trace"),
        "script": _from_model("torch.script"),
        "pt2": _from_model("torch.export"),
        "aot": _from_model("torch.aot"),
        "onnx": _from_model("onnx.export"),
        "checked": {"uses": "onnx.check", "inputs": {"model": _ONNX}},
        "fp16": {"uses": "onnx.float16", "inputs": {"model": _ONNX, "reference": MODEL}},
        "int8": int8,
        "ptl": _from_model("mobile.lite"),
        "pte": _from_model("mobile.executorch"),
        "openvino": {"uses": "openvino.convert", "inputs": {"model": _ONNX, "reference": MODEL}},
        "coreml": _from_model("coreml.convert"),
        "sagemaker": {"uses": "package.sagemaker", "inputs": {"model": _ONNX, "reference": MODEL}},
        "triton": {"uses": "package.triton", "inputs": {"model": _ONNX, "reference": MODEL}},
    }
    return stages | made


def _from_model(uses: str) -> dict[str, Any]:
    return {"uses": uses, "inputs": {"model": MODEL}}


def _without_export(form: tuple[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """Return the format of what is an ONNX file already."""
    output, needed = form
    return "model.onnx" if output == _EXPORTED else output, tuple(name for name in needed if name != "onnx")


def _of_onnx(stages: Stages) -> Stages:
    """Return the stages of what is an ONNX file already: it is its own conversion to ONNX."""
    own = "${{ stages.model.outputs.onnx }}"
    made = {}
    for name in ("model", "checked", "fp16", "int8", "openvino", "sagemaker", "triton"):
        inputs = {n: own if place == _ONNX else place for n, place in stages[name]["inputs"].items()}
        made[name] = {**stages[name], "inputs": inputs}
    return made
