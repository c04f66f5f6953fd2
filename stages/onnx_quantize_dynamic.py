"""`onnx.quantize_dynamic`: int8 weights, activations quantized while it runs."""

from __future__ import annotations

import logging

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
    StageParams,
)

from . import _bundle, _calibration, _onnx


class OnnxQuantizeDynamic(Stage):
    """Quantize an ONNX model's weights to int8, without calibration.

    Only MatMul and Gemm by default: convolutions get slower by this, up to 7 times.
    """

    uses = "onnx.quantize_dynamic"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime", "onnxruntime.quantization")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(StageParams):
        """What to quantize."""

        operators: list[str] = Field(default=["MatMul", "Gemm"], description="operator types")
        per_channel: bool = Field(False, description="one scale for each output channel")
        reduce_range: bool = Field(False, description="7-bit weights, for x86 CPUs without VNNI")

    class Inputs(StageInputs):
        """The float model."""

        model: File | Folder = Field(description="the float ONNX model")
        reference: Folder | None = Field(None, description="a bundle, to compare on its cases")

    class Outputs(StageOutputs):
        """The int8 model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Quantize, save, load back, compare."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.getLogger().setLevel(logging.ERROR)
        proto = _onnx.load_proto(inputs.model, weights=False)
        _onnx.refuse_quantized(proto)
        present = {node.op_type for node in proto.graph.node}
        if not present & set(params.operators):
            wanted, there = ", ".join(params.operators), ", ".join(sorted(present))
            raise StageError(f"the model has none of {wanted}, only {there}", fix="name others: `operators`")
        made = ctx.workdir / "int8.onnx"
        try:
            quantize_dynamic(
                _onnx.onnx_file(inputs.model),
                made,
                op_types_to_quantize=params.operators,
                per_channel=params.per_channel,
                reduce_range=params.reduce_range,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:
            raise StageError(f"the model can't be quantized: {_bundle.first_line(error)}") from error
        _onnx.save_proto(_onnx.load_proto(made), outputs.model)
        candidate = _onnx.runner(outputs.model, threads=ctx.threads)
        if inputs.reference is not None:
            samples = [case.inputs for case in _bundle.load_bundle(inputs.reference).cases]
            reference = _onnx.runner(inputs.model, threads=ctx.threads)
            for name, value in _calibration.agreement(reference, candidate, samples).items():
                ctx.figure(name, value)
        before, after = _onnx.size_bytes(inputs.model), _onnx.size_bytes(outputs.model)
        ctx.figure("bytes", after)
        ctx.figure("smaller", round(before / after, 3))
