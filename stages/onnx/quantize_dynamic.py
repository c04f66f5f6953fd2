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
    first_line,
)

from ..model import bundles, fresh_inputs, judging, protos
from . import int8

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


class OnnxQuantizeDynamic(Stage):
    """Quantize an ONNX model's weights to int8, without calibration.

    Only MatMul and Gemm are quantized by default, because convolutions get slower, up to 7 times.
    The result is checked on the reference cases and on fresh inputs, and the stage fails if it is
    below `min_cosine` or `min_agreement`.
    """

    uses = "onnx.quantize_dynamic"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime", "onnxruntime.quantization")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(int8.Weights, judging.Floors):
        """What to quantize, and how close it must be."""

        operators: list[str] = Field(default=["MatMul", "Gemm"], description="operator types")
        exclude: list[str] = Field(default=[], description="names of nodes to keep in float")

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
        proto = protos.load_proto(inputs.model, weights=False)
        protos.refuse_quantized(proto)
        made = _quantize(ctx, params, inputs.model, proto)
        protos.save_proto(made, outputs.model)
        reference = protos.runner(inputs.model, threads=ctx.threads)
        candidate = protos.runner(outputs.model, threads=ctx.threads)
        judged: dict[str, Iterable[bundles.Case]] = {}
        if inputs.reference is None:
            judged[judging.FRESH] = judging.answered(reference, fresh_inputs.from_graph(proto, reference))
        else:
            cases = bundles.load_bundle(inputs.reference).cases
            fresh = judging.answered(reference, fresh_inputs.from_cases(cases))
            judged = {judging.REFERENCE: cases, judging.FRESH: fresh}
        judging.judge(ctx, params, candidate, judged, lambda: _cause(made))
        int8.report(ctx, inputs.model, made)


def _instead(present: set[str]) -> str:
    """Say what a model without the operators that were asked for can become."""
    others = ", ".join(kind for kind in ("LSTM", "Attention") if kind in present)
    if others:
        return f"set `operators: [{others}]`"
    if "Conv" in present:
        return "use onnx.quantize_static, which suits convolutions"
    return "keep it in float; onnx.float16 halves its size"


def _quantize(
    ctx: Context, params: OnnxQuantizeDynamic.Params, path: Path, proto: onnx.ModelProto
) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    source = int8.lifted(ctx, path)
    if protos.size_bytes(path) < protos.SINGLE_FILE_BYTES:
        source = int8.preprocessed(ctx, source)
    ready = protos.load_proto(source, weights=False)
    present = {node.op_type for node in ready.graph.node}
    if not present & set(params.operators):
        wanted, there = ", ".join(params.operators), ", ".join(sorted(present))
        raise StageError(
            f"nothing was quantized: the model has none of {wanted}, only {there}", fix=_instead(present)
        )
    made = ctx.workdir / "int8.onnx"
    try:
        quantize_dynamic(
            source,
            made,
            op_types_to_quantize=params.operators,
            nodes_to_exclude=int8.excluded(proto, ready, params.exclude),
            **params.options(per_channel=params.per_channel is not False),
        )
    except Exception as error:
        said = f"the model can't be quantized: {first_line(error)}"
        raise StageError(said, fix="check the file by onnx.check, or `exclude` the nodes named") from error
    return protos.load_proto(made)


def _cause(made: onnx.ModelProto) -> tuple[str, str]:
    if int8.needs_vnni(made):
        return int8.SATURATION
    return ("a few large weights or inputs leave too few int8 steps for the others",
            "keep the worst nodes in float with `exclude`, or lower the limits")  # fmt: skip
