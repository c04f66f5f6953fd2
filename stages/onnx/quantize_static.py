"""`onnx.quantize_static`: int8 weights and activations, calibrated on samples."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    counted,
    first_line,
)

from ..model import bundles, calibration, fresh_inputs, judging, protos
from ..model.calibration import Method, Samples, Source
from . import int8

if TYPE_CHECKING:
    import onnx


class OnnxQuantizeStatic(Stage):
    """Quantize an ONNX model to int8 with activation ranges found on calibration samples.

    Nodes whose values don't fit into int8, such as a mask of -inf, stay in float. The result is
    checked on the reference cases and on inputs that lie between the samples, and the stage fails
    if it is below `min_cosine` or `min_agreement`. To check the loss of accuracy, use
    verify.accuracy.
    """

    uses = "onnx.quantize_static"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime", "onnxruntime.quantization")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(Source, int8.Weights, judging.Floors):
        """How to quantize, and how close it must be."""

        weights: Literal["int8", "uint8"] = Field("int8", description="uint8 is slower: 1.6 times on x86")
        reduce_range: bool = Field(True, description="7-bit weights: 8-bit int8 overflows without VNNI")
        method: Method = Field("minmax", description="how ranges are found")
        bins: int = Field(
            2048, ge=256, description="histogram bins of entropy and percentile, on each side of 0"
        )
        percentile: float = Field(99.9, gt=50, le=100, description="share of values inside the range")
        format: Literal["QDQ", "QOperator"] = Field(
            "QDQ", description="how quantization is represented in the file"
        )
        exclude: list[str] = Field(default=[], description="names of nodes to keep in float")

    class Inputs(StageInputs):
        """The float model and the samples."""

        model: File | Folder = Field(description="the float ONNX model")
        calibration: File | Folder | None = Field(
            None,
            description="samples in an .npz, by input name or `x`, in a folder of pictures or a bundle",
        )

        reference: Folder | None = Field(None, description="a bundle, to compare on its cases too")

    class Outputs(StageOutputs):
        """The int8 model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Calibrate, quantize, save, load back, judge."""
        logging.getLogger().setLevel(logging.ERROR)
        proto = protos.load_proto(inputs.model, weights=False)
        protos.refuse_quantized(proto)
        per_channel = _per_channel(params, protos.opset_of(proto))
        bundle = None if inputs.reference is None else bundles.load_bundle(inputs.reference)
        slots = calibration.slots_of_onnx(proto, bundle)
        samples = calibration.open_samples(ctx, params, inputs.calibration, slots)
        ready = int8.preprocessed(ctx, int8.lifted(ctx, inputs.model))
        prepared = protos.load_proto(ready, weights=False)
        kept = fresh_inputs.kept(samples)
        seen = int8.survey(ctx, ready, kept)
        unfit = seen.nodes(prepared)
        exclude = sorted({*int8.excluded(proto, prepared, params.exclude), *unfit})
        made = _quantize(ctx, params, ready, samples, _Choice(exclude, seen.unfit, per_channel))
        protos.save_proto(made, outputs.model)
        reference = protos.runner(inputs.model, threads=ctx.threads)
        candidate = protos.runner(outputs.model, threads=ctx.threads)
        fresh = list(fresh_inputs.from_samples(kept))
        judged = {judging.FRESH: list(judging.answered(reference, fresh))}
        if bundle is not None:
            judged[judging.REFERENCE] = list(bundle.cases)
        asked = [case.inputs for cases in judged.values() for case in cases]
        judging.judge(ctx, params, candidate, judged,
                     lambda: _cause(params, made, seen, int8.survey(ctx, ready, asked)))  # fmt: skip
        ctx.figure("unfit_for_int8", unfit)  # type: ignore[arg-type]
        int8.report(ctx, inputs.model, made)


@dataclass(frozen=True, slots=True)
class _Choice:
    exclude: list[str]
    unfit: set[str]
    per_channel: bool


def _per_channel(params: OnnxQuantizeStatic.Params, opset: int) -> bool:
    """Return what was asked for, else what the opset allows."""
    able = opset >= int8.PER_CHANNEL_OPSET or params.format == "QOperator"
    if params.per_channel and not able:
        raise StageError(f"per_channel with QDQ needs opset {int8.PER_CHANNEL_OPSET}, the model has {opset}",
                         fix="export with a newer opset, or use format: QOperator")  # fmt: skip
    return able if params.per_channel is None else params.per_channel


def _quantize(
    ctx: Context, params: OnnxQuantizeStatic.Params, ready: Path, samples: Samples, choice: _Choice
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    ranges, made = ctx.workdir / "ranges.json", ctx.workdir / "int8.onnx"
    count = calibration.compute_ranges(
        ready, samples, ranges, method=params.method, bins=params.bins, percentile=params.percentile,
        unfit=choice.unfit,
    )  # fmt: skip
    ctx.figure("calibration_samples", count)
    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    try:
        quantize_static(
            ready,
            made,
            calibration_cache_path=ranges,
            calibrate_method=CalibrationMethod[methods[params.method]],
            quant_format=QuantFormat[params.format],
            activation_type=QuantType.QUInt8,
            nodes_to_exclude=choice.exclude,
            extra_options={"WeightSymmetric": True},  # Kernels want one zero point for all channels.
            **params.options(per_channel=choice.per_channel),
        )
    except Exception as error:
        said = f"the model can't be quantized: {first_line(error)}"
        raise StageError(said, fix="check the file by onnx.check, or `exclude` the nodes named") from error
    return protos.load_proto(made)


def _cause(
    params: OnnxQuantizeStatic.Params, made: onnx.ModelProto, seen: int8.Survey, asked: int8.Survey
) -> tuple[str, str]:
    """Say what is the matter: dead or narrow ranges of the calibration, or the CPU."""
    if int8.needs_vnni(made):
        return int8.SATURATION
    dead = sorted(n for n, (low, high) in seen.ranges.items() if low == high == 0 != asked.reach(n))
    if dead:
        return (f"on the calibration samples every value of {_listed(dead)} is 0",
                "calibrate on real samples")  # fmt: skip
    beyond = sorted(n for n in seen.ranges if asked.reach(n) > 1.5 * seen.reach(n))
    if beyond:
        return (f"values of {_listed(beyond)} saturate: they exceed the range that was found on the "
                "calibration samples",
                "calibrate on more varied samples, such as the `samples` of model.prepare")  # fmt: skip
    if params.method != "minmax":
        return (f"{params.method} clips values that matter",
                "use `method: minmax`, or a higher `percentile`")  # fmt: skip
    return ("outliers leave too few of the 256 int8 steps for the other values of some tensors",
            "use `method: percentile`, or `exclude` the layers that onnx.sensitivity lists")  # fmt: skip


def _listed(names: list[str]) -> str:
    more = len(names) - 1
    return repr(names[0]) + (f" and {counted(more, 'other tensor')}" if more else "")
