"""`openvino.quantize`: int8 weights and activations by NNCF, calibrated on samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
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
    closest,
)

from ..model import bundles, calibration, fresh_inputs, judging, npz, protos
from ..model.bundles import Bundle
from ..model.calibration import Samples, Source
from ..model.compare import Model
from . import ir

_INT8 = ("i8", "u8")


class OpenvinoQuantize(Stage):
    """Quantize an IR to int8 with NNCF, with activation ranges found on calibration samples.

    With `max_drop`, layers return to float, the most sensitive first, until the accuracy on
    labelled `data` is within the limit. In both cases the result is checked on the reference cases
    and on inputs that lie between the samples, and the stage fails if it is below `min_cosine` or
    `min_agreement`, because the accuracy alone says little about the outputs.
    """

    uses = "openvino.quantize"
    packages = ("openvino", "nncf", "onnx", "numpy")
    facets = ("arch", "isa")
    extra = "openvino"

    class Params(Source, judging.Floors):
        """How to quantize, and how close it must be."""

        max_drop: float | None = Field(
            None, ge=0, description="largest loss of accuracy on `data`, in points of top-1"
        )
        transformer: bool = Field(False, description="keep what attention is sensitive to in float")
        reduce_range: bool = Field(True, description="7-bit weights: 8-bit ones overflow without VNNI")
        exclude: list[str] = Field(default=[], description="names of layers to keep in float")

        def check_inputs(self, given: Collection[str]) -> None:
            """Raise StageError for a limit without the data that it is measured on, or the reverse."""
            if ("data" in given) != (self.max_drop is not None):
                only, lacks = ("data", "`max_drop`") if "data" in given else ("max_drop", "the input `data`")
                raise StageError(f"`{only}` needs {lacks}", fix="set both, or neither")

    class Inputs(StageInputs):
        """The float model and the samples."""

        model: Folder = Field(description="the output of openvino.convert")
        reference: Folder = Field(description="the bundle it was created from")
        calibration: File | Folder | None = Field(
            None,
            description="samples in an .npz, by input name or `x`, in a folder of pictures or a bundle",
        )
        data: File | None = Field(
            None, description="for `max_drop`: an .npz with inputs (by name, or `x`) and labels `y`"
        )

    class Outputs(StageOutputs):
        """The int8 model."""

        model: Folder = Output("model", "model.xml and model.bin, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Calibrate, quantize, save, load back, judge."""
        bundle = bundles.load_bundle(inputs.reference)
        model = ir.read(inputs.model)
        names = ir.names(model)
        _refuse(params, inputs, model, names)
        samples = calibration.open_samples(
            ctx, params, inputs.calibration, calibration.slots_of_bundle(bundle)
        )
        labelled = None if inputs.data is None else _Labelled(ctx, bundle, inputs.data)
        made = _quantize(ctx, params, model, samples, labelled)
        weights, activations = _count(made)
        if not weights and not activations:
            raise StageError("nothing was quantized: no layer has an int8 form, or all lost too much",
                             fix="raise `max_drop`, or use the float model of openvino.convert")  # fmt: skip
        ir.save(made, outputs.model, names)
        original = ir.runner(inputs.model, threads=ctx.threads, outputs=bundle.output_names)
        run = ir.runner(outputs.model, threads=ctx.threads, outputs=bundle.output_names)
        fresh = fresh_inputs.from_samples(fresh_inputs.kept(samples))
        judged = {judging.FRESH: judging.answered(original, fresh), judging.REFERENCE: bundle.cases}
        judging.judge(ctx, params, run, judged, lambda: (
            "the calibration samples are all alike or don't cover these inputs, or some layers need more "
            "than 256 steps", "calibrate on varied real samples, or `exclude` layers"
        ))  # fmt: skip
        if labelled is not None:
            _judge_accuracy(ctx, params, labelled.score(original), labelled.score(run))
        before, after = protos.size_bytes(inputs.model), protos.size_bytes(outputs.model)
        ctx.figure("quantized", weights)
        ctx.figure("quantized_activations", activations)
        ctx.figure("bytes", after)
        ctx.figure("smaller", round(before / after, 3))


def _refuse(
    params: OpenvinoQuantize.Params, inputs: OpenvinoQuantize.Inputs, model: Any, names: list[str]
) -> None:
    """Refuse what can't be asked for. Raises StageError."""
    if any(_count(model)):
        raise StageError("the model is already quantized", fix="use the float model of openvino.convert")
    for name in params.exclude:
        if name not in names:
            raise StageError(f"exclude: the model has no layer {name!r}", fix=closest(name, names))


def _quantize(
    ctx: Context, params: OpenvinoQuantize.Params, model: Any, samples: Samples, labelled: _Labelled | None
) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedAccuracyRestorerParameters,
        AdvancedQuantizationParameters,
        OverflowFix,
    )

    count = sum(1 for _ in samples)
    ctx.figure("calibration_samples", count)
    fix = OverflowFix.ENABLE if params.reduce_range else OverflowFix.DISABLE
    options: dict[str, Any] = {
        "subset_size": count,
        "model_type": nncf.ModelType.TRANSFORMER if params.transformer else None,
        "ignored_scope": nncf.IgnoredScope(names=params.exclude) if params.exclude else None,
    }
    try:
        if labelled is None:
            advanced = AdvancedQuantizationParameters(overflow_fix=fix)
            return nncf.quantize(model, nncf.Dataset(samples), advanced_parameters=advanced, **options)
        return nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(samples),
            nncf.Dataset(list(labelled)),
            labelled.validate,
            max_drop=(params.max_drop or 0.0) / 100,
            advanced_quantization_parameters=AdvancedQuantizationParameters(overflow_fix=fix),
            # The usual number of workers follows from how long things take.
            advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(num_ranking_workers=1),
            **options,
        )
    except StageError:
        raise
    except Exception as error:
        raise StageError(f"the model can't be quantized: {ir.why(error)}") from error


def _count(model: Any) -> tuple[int, int]:
    """Return how many weights are int8, and how many activations are quantized."""
    kinds = [
        layer.get_element_type().get_type_name() if kind == "Constant" else kind
        for layer in model.get_ordered_ops()
        for kind in [layer.get_type_name()]
    ]
    return sum(kinds.count(kind) for kind in _INT8), kinds.count("FakeQuantize")


class _Labelled:
    """Labelled samples, in the batches that the model takes, and how a model is scored on them."""

    def __init__(self, ctx: Context, bundle: Bundle, path: Path) -> None:
        labels = npz.read_arrays(path).get("y")
        if labels is None or not len(labels):
            raise StageError("the data has no labels `y`", fix="save it as np.savez(path, x=…, y=…)")
        first = bundle.outputs[0]
        self._axis, self._output = first.batch or 0, first.name
        slots = calibration.slots_of_bundle(bundle)
        self._batches = list(calibration.open_samples(ctx, Source(), path, slots))
        step = max(slot.at_once for slot in slots)
        if len(labels) // step != len(self._batches):
            raise StageError(f"there are {len(labels)} labels `y` for {step * len(self._batches)} samples",
                             fix="provide one label for each sample")  # fmt: skip
        self._labels = [labels[i * step : (i + 1) * step] for i in range(len(self._batches))]

    def __iter__(self) -> Any:
        return zip(self._batches, self._labels, strict=True)

    def validate(self, opened: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        """Return the share of samples whose largest output is at the label, and that of each batch."""
        return self._shares(ir.running(opened), items)

    def score(self, run: Model) -> float:
        """Return a model's accuracy in percent."""
        return round(100 * self._shares(run, self)[0], 9)

    def _shares(self, run: Model, items: Iterable[Any]) -> tuple[float, list[float]]:
        import numpy as np

        shares = []
        for inputs, labels in items:
            found = np.moveaxis(run(inputs)[self._output], self._axis, 0)
            shares.append(float((found.argmax(-1) == labels).mean()))
        return sum(shares) / len(shares), shares


def _judge_accuracy(ctx: Context, params: OpenvinoQuantize.Params, before: float, after: float) -> None:
    drop = round(before - after, 9)
    for name, value in (("accuracy", after), ("reference_accuracy", before), ("drop", drop)):
        ctx.figure(name, value)
    if params.max_drop is not None and drop > params.max_drop:
        raise GateError(f"the accuracy drops by {drop:.2f} points, from {before:.2f} % to {after:.2f} %; "
                        f"the limit is {params.max_drop:g}")  # fmt: skip
