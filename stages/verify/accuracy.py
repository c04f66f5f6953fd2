"""`verify.accuracy`: how good is a converted model on labelled data, and what did it lose?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    File,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    first_line,
)

from ..model import bundles, npz, opened_io, protos
from ..model.calibration import Slot, samples_of_output, slots_of_bundle, slots_of_onnx
from ..model.compare import Model
from ..model.wording import user_line
from ..openvino import ir
from . import raw_answers, raw_data, runtime

_BATCH = 64


class VerifyAccuracy(Stage):
    """Measure a model's accuracy on labelled data, and fail below the limits.

    With a `reference` the loss is measured in points: 98.5 % after 99.0 % is a loss of 0.5.
    """

    uses = "verify.accuracy"
    packages = ("onnx", "onnxruntime", "torch", "numpy", "pillow", "tokenizers", "soundfile", "soxr")
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(runtime.OnDevice):
        """The metric and its limits."""

        metric: Code | None = Field(
            None,
            description="function(outputs, labels), samples first → score from 0 to 1 (default: top-1); with "
            "`io` of lists of answers and labels",
        )
        label: str = Field(
            raw_data.LABEL, description="with `io`: the column or key of the data that holds the label"
        )
        max_drop: float | None = Field(
            None, ge=0, description="largest loss against the reference, in points"
        )
        min_accuracy: float | None = Field(None, ge=0, le=100, description="lowest accuracy, in percent")

    class Inputs(StageInputs):
        """The models and the data."""

        candidate: File | Folder = Field(
            description="the model: ONNX, TorchScript, .pt2, .ptl, .pte or a bundle"
        )
        data: File | Folder = Field(
            description="an .npz with the inputs (by name, or `x`) and the labels `y`; with `io` a folder of "
            "files by class (or with a metadata.csv), a .csv, .tsv or .jsonl"
        )
        io: Folder | None = Field(None, description="the output of model.io: the data is raw input")
        reference: Folder | None = Field(None, description="the bundle that it was created from")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("accuracy.json", "accuracy in percent, loss in points")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Measure, report, refuse."""
        bundle = bundles.load_bundle(inputs.reference) if inputs.reference else None
        metric = ctx.load(params.metric) if params.metric else None
        scores_of, count = (_tensors if inputs.io is None else _raw)(params, inputs, bundle, metric)
        paths = [inputs.candidate] + ([Path(bundle.folder)] if bundle is not None else [])
        score, *of_reference = scores_of(
            [runtime.open_model(ctx, path, bundle, device=params.device) for path in paths]
        )
        report: dict[str, Any] = {"accuracy": score, "samples": count, "drop": None}
        for reference in of_reference:
            report |= {"reference_accuracy": reference, "drop": round(reference - score, 9)}
        for name, value in report.items():
            ctx.figure(name, value)
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        _refuse(ctx.stage, params, report)


_Metric = Callable[[Any, Any], float]
_Scores = Callable[[list[Model]], list[float]]


def _tensors(
    params: VerifyAccuracy.Params, inputs: VerifyAccuracy.Inputs, bundle: bundles.Bundle | None,
    metric: _Metric | None,
) -> tuple[_Scores, int]:  # fmt: skip
    """Return how models are scored on an .npz, and how many samples that has."""
    if inputs.data.is_dir():
        raise StageError("a folder is raw input, which needs `io`", fix="add the output of model.io")
    arrays = npz.read_arrays(inputs.data)
    labels = arrays.pop("y", None)
    if labels is None or not len(labels):
        raise StageError("the data has no labels `y`", fix="save it as np.savez(path, x=…, y=…)")
    data = _data(inputs.candidate, arrays, len(labels), bundle)
    return lambda models: [_score(run, data, labels, metric or top1) for run in models], len(labels)


def _raw(
    params: VerifyAccuracy.Params, inputs: VerifyAccuracy.Inputs, bundle: bundles.Bundle | None,
    metric: _Metric | None,
) -> tuple[_Scores, int]:  # fmt: skip
    """Return how models are scored on raw input, and how many samples that has."""
    assert inputs.io is not None
    io = opened_io.open_io(inputs.io)
    if metric is None and io.spec["answer"].get("kind") not in ("classes", "labels"):
        raise StageError("the answers have no class to compare with a label", fix="set `metric`")
    slots, output = _slots(inputs.candidate, bundle)
    axes = (
        raw_answers.axes_of(bundle)
        if bundle
        else dict.fromkeys([io.spec["answer"].get("output", "")], output)
    )
    labels = []
    for sample in raw_data.samples(inputs.data, io, params.label):
        if sample.label is None:
            raise StageError(
                f"{sample.place} has no label", fix=f"name its column {params.label!r}, or set `label`"
            )
        labels.append(sample.label if metric else raw_data.known(sample.label, io, sample.place))
    if not labels:
        raise StageError("the data has no samples", fix="check the path of `data`")

    def scores(models: list[Model]) -> list[float]:
        answers = [raw_answers.answering(run, io, slots, axes) for run in models]
        found: list[list[Any]] = [[] for _ in models]
        for sample in raw_data.samples(inputs.data, io, params.label):
            given = raw_answers.read(io, sample)
            for answer, answered in zip(answers, found, strict=True):
                answered.append(answer(given))
        return [round(100 * _measured(metric or _right, answered, labels), 9) for answered in found]

    return scores, len(labels)


def _right(answers: list[Any], labels: list[Any]) -> float:
    """Return the share of answers whose prediction is the label, or has all labels and no other."""
    pairs = zip(answers, labels, strict=True)
    return sum(_set(one["prediction"]) == _set(label) for one, label in pairs) / len(labels)


def _set(labels: Any) -> set[Any]:
    return set(labels) if isinstance(labels, list) else {labels}


def top1(outputs: Any, labels: Any) -> float:
    """Return the share of samples whose largest output is at the label."""
    return float((outputs.argmax(-1) == labels).mean())


@dataclass(frozen=True, slots=True)
class _Data:
    """Inputs with the axis of the samples in each, None for one that all samples share.

    `output` is that axis of the first output, where all of them share `count`; `size` is how many samples
    the model takes at once, where that is fixed.
    """

    arrays: dict[str, Any]
    axes: dict[str, int | None]
    output: int
    count: int
    size: int | None

    def batches(self) -> Iterator[dict[str, Any]]:
        """Yield the inputs of some samples each; the last one again where a fixed batch isn't full."""
        import numpy as np

        step = self.size or _BATCH
        for start in range(0, self.count, step):
            places = range(start, start + step if self.size else min(start + step, self.count))
            yield {
                name: array if axis is None else np.take(array, places, axis=axis, mode="clip")
                for name, array in self.arrays.items()
                for axis in [self.axes[name]]
            }


def _data(candidate: Path, arrays: dict[str, Any], count: int, bundle: bundles.Bundle | None) -> _Data:
    """Find the axes. Raises StageError where an input hasn't `count` samples."""
    slots, output = _slots(candidate, bundle)
    arrays = _named(arrays, slots)
    axes: dict[str, int | None] = {name: 0 if array.ndim else None for name, array in arrays.items()}
    axes |= {slot.name: slot.batch for slot in slots}
    for name, array in arrays.items():
        axis = axes[name]
        if axis is not None and (array.ndim <= axis or array.shape[axis] != count):
            raise StageError(f"there are {count} labels `y`, but {name!r} has the shape {array.shape}",
                             fix="provide one label for each sample")  # fmt: skip
    sizes = [slot.shape[slot.batch] for slot in slots if slot.batch is not None]
    return _Data(arrays, axes, output, count, sizes[0] if sizes else None)


def _slots(candidate: Path, bundle: bundles.Bundle | None) -> tuple[list[Slot], int]:
    """Return what the inputs are, where that is known, and the axis of the samples in the first output."""
    if bundle is None and (candidate / "bundle.json").is_file():
        bundle = bundles.load_bundle(candidate)
    if bundle is not None:
        first = bundle.outputs[0]
        if bundle.batch_sized and first.batch is None:
            raise StageError(f"the first output {first.name!r} has no value per sample to compare with `y`",
                             fix="have the factory return a module whose first output does")  # fmt: skip
        return slots_of_bundle(bundle), first.batch or 0
    if candidate.suffix == ".onnx" or (candidate.is_dir() and not (candidate / ir.FILE_NAME).is_file()):
        proto = protos.load_proto(candidate, weights=False)
        return slots_of_onnx(proto), samples_of_output(proto)
    return [], 0


def _score(run: Model, data: _Data, labels: Any, metric: Callable[..., Any]) -> float:
    """Return the metric in percent, of the model's first output over all samples, which come first."""
    import numpy as np

    found = [np.moveaxis(next(iter(run(inputs).values())), data.output, 0) for inputs in data.batches()]
    score = _measured(metric, np.concatenate(found)[: data.count], labels)
    return round(100.0 * score, 9)


def _measured(metric: Callable[..., Any], outputs: Any, labels: Any) -> float:
    """Return what the metric gives. Raises StageError with the user's line where that is no number."""
    try:
        score = float(metric(outputs, labels))
    except Exception as error:
        shapes = [getattr(given, "shape", len(given)) for given in (outputs, labels)]
        said = f"the metric fails on outputs {shapes[0]} and labels {shapes[1]}"
        raise StageError(f"{said}: {first_line(error)}{user_line(error)}",
                         fix="it must accept the first output and return a number") from error  # fmt: skip
    if not math.isfinite(score):
        raise StageError(f"the metric returned {score}", fix="it must return a number from 0 to 1")
    return score


def _named(arrays: dict[str, Any], slots: list[Slot]) -> dict[str, Any]:
    """Return the arrays by input name, floats as the model has them; `x` stands for an only input."""
    if list(arrays) == ["x"] and len(slots) == 1:
        arrays = {slots[0].name: arrays["x"]}
    kinds = {slot.name: slot.dtype for slot in slots if slot.dtype.startswith("float")}
    return {n: a.astype(kinds[n]) if n in kinds and a.dtype.kind == "f" else a for n, a in arrays.items()}


def _refuse(stage: str, params: VerifyAccuracy.Params, report: dict[str, Any]) -> None:
    if params.min_accuracy is not None and report["accuracy"] < params.min_accuracy:
        raise GateError(
            f"{stage}: the accuracy is {report['accuracy']:.2f} %, below {params.min_accuracy:g} %",
            fix="check that the data is prepared as in training, and that its labels are the model's classes",
        )
    if params.max_drop is None:
        return
    if report["drop"] is None:
        raise StageError("max_drop needs the input `reference`", fix="add the bundle of model.prepare")
    if report["drop"] > params.max_drop:
        raise GateError(
            f"{stage}: the accuracy drops by {report['drop']:.2f} points, from "
            f"{report['reference_accuracy']:.2f} % to {report['accuracy']:.2f} %; "
            f"the limit is {params.max_drop:g}",
            fix="for int8: calibrate with more samples like the real ones, or another `method`, "
            "or `exclude` the layers that onnx.sensitivity names",
        )
