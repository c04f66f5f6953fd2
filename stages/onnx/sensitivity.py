"""`onnx.sensitivity`: which layers of a model lose most by int8."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    first_line,
)

from ..model import calibration, fresh_inputs, plot, protos
from . import int8

_SHOWN = 30


class OnnxSensitivity(Stage):
    """Quantize one layer at a time to int8 and measure the loss in the outputs.

    The report lists the layers by their signal-to-noise ratio, the worst first, and the names for
    `exclude` of onnx.quantize_static.
    """

    uses = "onnx.sensitivity"
    packages = ("onnx", "onnxruntime", "numpy", "matplotlib")
    preload = ("onnx", "onnxruntime", "onnxruntime.quantization")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(calibration.Source):
        """How to quantize, and which layers."""

        operators: list[str] = Field(
            default=["Conv", "ConvTranspose", "Gemm", "MatMul"], description="operator types to try"
        )
        per_channel: bool | None = Field(
            None, description="one scale for each output channel (default: wherever the opset allows it)"
        )
        min_sqnr_db: float = Field(20.0, description="layers below this ratio (dB) are listed in `exclude`")

    class Inputs(StageInputs):
        """The float model and the samples."""

        model: File | Folder = Field(description="the float ONNX model")
        calibration: File | Folder | None = Field(
            None,
            description="samples in an .npz, by input name or `x`, in a folder of pictures or a bundle",
        )

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("sensitivity.json", "the loss of each layer, worst first")
        plot: File = Output("sensitivity.svg", "the same as a plot")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Calibrate once, then quantize each layer alone and compare."""
        logging.getLogger().setLevel(logging.ERROR)
        original = protos.load_proto(inputs.model, weights=False)
        protos.refuse_quantized(original)
        if params.per_channel is None and protos.opset_of(original) < int8.PER_CHANNEL_OPSET:
            params = params.model_copy(update={"per_channel": False})
        ready = int8.preprocessed(ctx, int8.lifted(ctx, inputs.model))
        proto = protos.load_proto(ready)
        nodes = {n.name: n.op_type for n in proto.graph.node if n.op_type in params.operators}
        if not nodes:
            raise StageError(
                f"the model has none of {', '.join(params.operators)}", fix="set `operators` to other types"
            )
        samples = calibration.open_samples(ctx, params, inputs.calibration, calibration.slots_of_onnx(proto))
        ranges = ctx.workdir / "ranges.json"
        seen = int8.survey(ctx, ready, fresh_inputs.kept(samples))
        nodes = {name: kind for name, kind in nodes.items() if name not in seen.nodes(proto)}
        calibration.compute_ranges(ready, samples, ranges, method="minmax", bins=2048, percentile=99.9)
        float_model = protos.runner(ready, threads=ctx.threads)
        rows = []
        for index, (name, kind) in enumerate(nodes.items()):
            ctx.progress(index / len(nodes), name)
            candidate = protos.runner(_quantize_one(ctx, params, ready, ranges, name), threads=ctx.threads)
            rows.append({"layer": name, "operator": kind, **_loss(float_model, candidate, samples)})
        rows.sort(key=lambda row: (row["sqnr_db"], row["layer"]))
        exclude = [row["layer"] for row in rows if row["sqnr_db"] < params.min_sqnr_db]
        report = {"layers": rows, "exclude": exclude, "min_sqnr_db": params.min_sqnr_db}
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        shown = rows[:_SHOWN]
        plot.bars(outputs.plot, [r["layer"] for r in shown], [r["sqnr_db"] for r in shown],
                   label="signal-to-quantization-noise ratio (dB), lower is worse")  # fmt: skip
        ctx.figure("layers", len(rows))
        ctx.figure("worst", rows[0]["layer"])
        ctx.figure("worst_sqnr_db", rows[0]["sqnr_db"])
        ctx.figure("exclude", exclude)


def _quantize_one(ctx: Context, params: OnnxSensitivity.Params, ready: Path, ranges: Path, name: str) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    made = ctx.workdir / "one.onnx"
    try:
        quantize_static(
            ready,
            made,
            calibration_cache_path=ranges,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            nodes_to_quantize=[name],
            extra_options={"WeightSymmetric": True},
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=params.per_channel is not False,
        )
    except Exception as error:
        raise StageError(f"the layer {name!r} can't be quantized: {first_line(error)}") from error
    return made


def _loss(reference: Any, candidate: Any, samples: calibration.Samples) -> dict[str, float]:
    """Return 10·log10(Σ signal² / Σ noise²) over all samples and outputs, and the argmax agreement.

    A layer that changes nothing has the ratio of float32 itself, 150 dB.
    """
    import numpy as np

    signal = noise = 0.0
    agreed = count = 0
    for sample in samples:
        expected: Mapping[str, Any] = reference(sample)
        actual: Mapping[str, Any] = candidate(sample)
        for name, array in expected.items():
            a, b = array.astype(np.float64), actual[name].astype(np.float64)
            signal += float((a**2).sum())
            noise += float(((a - b) ** 2).sum())
            agreed += int((a.argmax(-1) == b.argmax(-1)).sum()) if a.ndim else 1
            count += a.size // a.shape[-1] if a.ndim else 1
    ratio = 10 * math.log10(signal / noise) if signal and noise else 150.0
    return {"sqnr_db": round(min(ratio, 150.0), 3), "argmax_agreement": agreed / count}
