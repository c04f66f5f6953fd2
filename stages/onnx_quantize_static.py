"""`onnx.quantize_static`: int8 weights and activations, calibrated on samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

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
)

from . import _calibration, _onnx
from ._bundle import first_line
from ._calibration import Method, Samples, Source

_PER_CHANNEL_OPSET = 13


class OnnxQuantizeStatic(Stage):
    """Quantize an ONNX model to int8 with activation ranges found on calibration samples.

    The figures compare it with the float model on those samples; whether the loss of accuracy is
    acceptable is for verify.accuracy to say.
    """

    uses = "onnx.quantize_static"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime", "onnxruntime.quantization")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(Source):
        """How to quantize."""

        method: Method = Field("minmax", description="how ranges are found")
        bins: int = Field(2048, ge=129, description="histogram bins of entropy and percentile")
        percentile: float = Field(99.9, gt=50, le=100, description="share of values inside the range")
        format: Literal["QDQ", "QOperator"] = Field("QDQ", description="how the file says it")
        per_channel: bool = Field(False, description="one scale for each output channel of weights")
        reduce_range: bool = Field(False, description="7-bit weights, for x86 CPUs without VNNI")
        exclude: list[str] = Field(default=[], description="names of nodes to leave in float")

    class Inputs(StageInputs):
        """The float model and the samples."""

        model: File | Folder = Field(description="the float ONNX model")
        calibration: File | Folder | None = Field(
            None, description="an .npz of samples, by input name or `x`; a folder of pictures"
        )

    class Outputs(StageOutputs):
        """The int8 model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Calibrate, quantize, save, load back, compare."""
        source = _onnx.onnx_file(inputs.model)
        proto = _onnx.load_proto(inputs.model, weights=False)
        _onnx.refuse_quantized(proto)
        opset = _onnx.opset_of(proto)
        if params.per_channel and params.format == "QDQ" and opset < _PER_CHANNEL_OPSET:
            raise StageError(f"per_channel with QDQ needs opset {_PER_CHANNEL_OPSET}, the model has {opset}",
                             fix="export with a newer opset, or use format: QOperator")  # fmt: skip
        _onnx.refuse_unknown_nodes(proto, params.exclude)
        slots = _calibration.slots_of_onnx(proto)
        samples = _calibration.open_samples(ctx, params, inputs.calibration, slots)
        made = _quantize(ctx, params, source, samples)
        _onnx.save_proto(_onnx.load_proto(made), outputs.model)
        reference = _onnx.runner(inputs.model, threads=ctx.threads)
        candidate = _onnx.runner(outputs.model, threads=ctx.threads)
        for name, value in _calibration.agreement(reference, candidate, samples).items():
            ctx.figure(name, value)
        before, after = _onnx.size_bytes(inputs.model), _onnx.size_bytes(outputs.model)
        ctx.figure("bytes", after)
        ctx.figure("smaller", round(before / after, 3))


def _quantize(ctx: Context, params: OnnxQuantizeStatic.Params, source: Path, samples: Samples) -> Path:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    logging.getLogger().setLevel(logging.ERROR)
    ready = preprocessed(ctx, source)
    ranges, made = ctx.workdir / "ranges.json", ctx.workdir / "int8.onnx"
    _calibration.compute_ranges(
        ready, samples, ranges, method=params.method, bins=params.bins, percentile=params.percentile
    )
    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    try:
        quantize_static(
            ready,
            made,
            calibration_cache_path=ranges,
            calibrate_method=CalibrationMethod[methods[params.method]],
            quant_format=QuantFormat[params.format],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=params.per_channel,
            reduce_range=params.reduce_range,
            nodes_to_exclude=params.exclude,
        )
    except Exception as error:
        raise StageError(f"the model can't be quantized: {first_line(error)}") from error
    return made


def preprocessed(ctx: Context, source: Path) -> Path:
    """Fold batch normalisation and infer shapes, which a legacy export has not done."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = ctx.workdir / "ready.onnx"
    try:
        quant_pre_process(source, ready, skip_symbolic_shape=True)
    except Exception as error:
        raise StageError(f"the model can't be prepared for quantizing: {first_line(error)}") from error
    return ready
