"""`verify.accuracy`: how good is a converted model on labelled data, and what did it lose?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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
    StageParams,
)

from . import _bundle, _runtime
from ._parity import Model

_BATCH = 64


class VerifyAccuracy(Stage):
    """Measure a model's accuracy on labelled data, and refuse it below the limits.

    With a `reference` the loss is measured in points: 98.5 % after 99.0 % is a loss of 0.5.
    """

    uses = "verify.accuracy"
    packages = ("onnxruntime", "torch", "numpy")
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(StageParams):
        """The metric and its limits."""

        metric: Code | None = Field(
            None,
            description="function(outputs, labels) → score from 0 to 1 (default: top-1 accuracy)",
        )
        max_drop: float | None = Field(
            None, ge=0, description="largest loss against the reference, in points"
        )
        min_accuracy: float | None = Field(None, ge=0, le=100, description="lowest accuracy, in percent")

    class Inputs(StageInputs):
        """The models and the data."""

        candidate: File | Folder = Field(description="the model: ONNX, TorchScript or a bundle")
        data: File = Field(description="an .npz with the inputs (by name, or `x`) and the labels `y`")
        reference: Folder | None = Field(None, description="the bundle that it was made from")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("accuracy.json", "accuracy in percent, loss in points")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Measure, report, refuse."""
        arrays = _bundle.read_arrays(inputs.data)
        labels = arrays.pop("y", None)
        if labels is None or not len(labels):
            raise StageError("the data has no labels `y`", fix="save it as np.savez(path, x=…, y=…)")
        for name, array in arrays.items():
            if not array.ndim or len(array) != len(labels):
                raise StageError(f"there are {len(labels)} labels `y`, but {name!r} is {array.shape}",
                                 fix="give one label for each sample")  # fmt: skip
        bundle = _bundle.load_bundle(inputs.reference) if inputs.reference else None
        metric = ctx.load(params.metric) if params.metric else top1
        candidate = _runtime.open_model(ctx, inputs.candidate, bundle)
        score = _score(candidate, arrays, labels, metric, bundle)
        report: dict[str, Any] = {"accuracy": score, "samples": len(labels), "drop": None}
        if bundle is not None:
            eager = _runtime.open_model(ctx, Path(bundle.folder), bundle)
            report["reference_accuracy"] = _score(eager, arrays, labels, metric, bundle)
            report["drop"] = round(report["reference_accuracy"] - score, 9)
        for name, value in report.items():
            ctx.figure(name, value)
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        _refuse(ctx.stage, params, report)


def top1(outputs: Any, labels: Any) -> float:
    """Return the share of samples whose largest output is at the label."""
    return float((outputs.argmax(-1) == labels).mean())


def _score(
    run: Model,
    arrays: dict[str, Any],
    labels: Any,
    metric: Callable[..., Any],
    bundle: _bundle.Bundle | None,
) -> float:
    """Return the metric in percent, of the model's first output over all samples."""
    import numpy as np

    inputs = _named(arrays, bundle)
    results = []
    for start in range(0, len(labels), _BATCH):
        outputs = run({name: array[start : start + _BATCH] for name, array in inputs.items()})
        results.append(next(iter(outputs.values())))
    score = _measured(metric, np.concatenate(results), labels)
    return round(100.0 * score, 9)


def _measured(metric: Callable[..., Any], outputs: Any, labels: Any) -> float:
    """Return what the metric gives. Raises StageError with the user's line where that is no number."""
    try:
        score = float(metric(outputs, labels))
    except Exception as error:
        said = f"the metric fails on outputs {outputs.shape} and labels {labels.shape}"
        raise StageError(f"{said}: {_bundle.first_line(error)}{_bundle.user_line(error)}",
                         fix="does it fit the first output, and return a number?") from error  # fmt: skip
    if not math.isfinite(score):
        raise StageError(f"the metric gives {score}", fix="it must return a number from 0 to 1")
    return score


def _named(arrays: dict[str, Any], bundle: _bundle.Bundle | None) -> dict[str, Any]:
    """Return the arrays by input name, floats as the model has them.

    `x` stands for the only input of a bundle's model.
    """
    if bundle is None:
        return arrays
    if list(arrays) == ["x"] and len(bundle.inputs) == 1:
        arrays = {bundle.input_names[0]: arrays["x"]}
    kinds = {port.name: port.dtype for port in bundle.inputs if port.dtype.startswith("float")}
    return {n: a.astype(kinds[n]) if n in kinds and a.dtype.kind == "f" else a for n, a in arrays.items()}


def _refuse(stage: str, params: VerifyAccuracy.Params, report: dict[str, Any]) -> None:
    if params.min_accuracy is not None and report["accuracy"] < params.min_accuracy:
        raise GateError(
            f"{stage}: the accuracy is {report['accuracy']:.2f} %, below {params.min_accuracy:g} %"
        )
    if params.max_drop is None:
        return
    if report["drop"] is None:
        raise StageError("max_drop needs the input `reference`", fix="add the bundle of model.prepare")
    if report["drop"] > params.max_drop:
        raise GateError(
            f"{stage}: the accuracy falls by {report['drop']:.2f} points, from "
            f"{report['reference_accuracy']:.2f} % to {report['accuracy']:.2f} %; "
            f"allowed are {params.max_drop:g}"
        )
