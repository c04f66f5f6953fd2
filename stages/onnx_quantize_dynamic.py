"""`onnx.quantize_dynamic`: int8 weights, activations quantized while it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

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

from . import _bundle, _fresh, _int8, _judge, _onnx

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


class OnnxQuantizeDynamic(Stage):
    """Quantize an ONNX model's weights to int8, without calibration.

    Only MatMul and Gemm by default: convolutions get slower by this, up to 7 times. The result is judged
    on the reference cases and on fresh inputs, and refused below the floors.
    """

    uses = "onnx.quantize_dynamic"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime", "onnxruntime.quantization")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(_int8.Weights, _judge.Floors):
        """What to quantize, and how close it must be."""

        operators: list[str] = Field(default=["MatMul", "Gemm"], description="operator types")
        exclude: list[str] = Field(default=[], description="names of nodes to leave in float")

    class Inputs(StageInputs):
        """The float model."""

        model: File | Folder = Field(description="the float ONNX model")
        reference: Folder | None = Field(None, description="a bundle, to compare on its cases too")

    class Outputs(StageOutputs):
        """The int8 model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Quantize, save, load back, judge."""
        logging.getLogger().setLevel(logging.ERROR)
        proto = _onnx.load_proto(inputs.model, weights=False)
        _onnx.refuse_quantized(proto)
        made = _quantize(ctx, params, inputs.model, proto)
        _onnx.save_proto(made, outputs.model)
        reference = _onnx.runner(inputs.model, threads=ctx.threads)
        candidate = _onnx.runner(outputs.model, threads=ctx.threads)
        judged: dict[str, Iterable[_bundle.Case]] = {}
        if inputs.reference is None:
            judged[_judge.FRESH] = _judge.answered(reference, _fresh.from_graph(proto, reference))
        else:
            cases = _bundle.load_bundle(inputs.reference).cases
            fresh = _judge.answered(reference, _fresh.from_cases(cases))
            judged = {_judge.REFERENCE: cases, _judge.FRESH: fresh}
        _judge.judge(ctx, params, candidate, judged, lambda: _cause(made))
        _int8.report(ctx, inputs.model, made)


def _quantize(
    ctx: Context, params: OnnxQuantizeDynamic.Params, path: Path, proto: onnx.ModelProto
) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    source = _int8.lifted(ctx, path)
    if _onnx.size_bytes(path) < _onnx.SINGLE_FILE_BYTES:
        source = _int8.preprocessed(ctx, source)
    ready = _onnx.load_proto(source, weights=False)
    present = {node.op_type for node in ready.graph.node}
    if not present & set(params.operators):
        wanted, there = ", ".join(params.operators), ", ".join(sorted(present))
        raise StageError(f"nothing was quantized: the model has none of {wanted}, only {there}",
                         fix="name others: `operators`")  # fmt: skip
    made = ctx.workdir / "int8.onnx"
    try:
        quantize_dynamic(
            source,
            made,
            op_types_to_quantize=params.operators,
            nodes_to_exclude=_int8.excluded(proto, ready, params.exclude),
            **params.options(per_channel=params.per_channel is not False),
        )
    except Exception as error:
        raise StageError(f"the model can't be quantized: {_bundle.first_line(error)}") from error
    return _onnx.load_proto(made)


def _cause(made: onnx.ModelProto) -> tuple[str, str]:
    if _int8.needs_vnni(made):
        return _int8.SATURATION
    return ("weights or inputs of very uneven size leave too few steps for most of them",
            "leave the worst nodes in float: `exclude`, or lower `min_cosine`, `min_agreement`")  # fmt: skip
