"""`onnx.optimize`: fold and fuse what can be, without tying the file to one CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
    first_line,
)

from ..model import bundles, protos
from ..model.compare import compare, gate


class OnnxOptimize(Stage):
    """Simplify an ONNX model with onnxruntime's portable optimisations, and compare the result.

    Only the basic level is used. Higher levels write operators for this machine's CPU; onnxruntime
    applies them anyway when it loads the file.
    """

    uses = "onnx.optimize"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(StageParams):
        """How close the result must be."""

        atol: float | None = Field(
            None, ge=0, description="absolute tolerance against the input model (default: by rounding)"
        )
        rtol: float | None = Field(None, ge=0, description="relative tolerance against the input model")

    class Inputs(StageInputs):
        """The model."""

        model: File | Folder = Field(description="an ONNX model below 2 GB")
        reference: Folder = Field(description="the bundle whose cases are run")

    class Outputs(StageOutputs):
        """The simpler model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Optimise, save, load back, compare."""
        made = _optimise(protos.onnx_file(inputs.model), ctx.workdir / "optimised.onnx")
        proto = protos.load_proto(made)
        foreign = sorted({node.op_type for node in proto.graph.node if node.domain not in ("", "ai.onnx")})
        before = protos.load_proto(inputs.model, weights=False)
        if foreign and not any(node.domain not in ("", "ai.onnx") for node in before.graph.node):
            raise StageError(
                f"the result would contain operators for one type of machine only: {', '.join(foreign)}"
            )
        protos.save_proto(proto, outputs.model)
        bundle = bundles.load_bundle(inputs.reference)
        original = protos.runner(inputs.model, threads=ctx.threads)
        cases = [replace(c, outputs=original(c.inputs)) for c in bundle.cases]
        result = protos.runner(outputs.model, threads=ctx.threads)
        parity = compare(cases, result, atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        ctx.figure("nodes_before", len(before.graph.node))
        ctx.figure("nodes", len(proto.graph.node))
        ctx.figure("bytes", protos.size_bytes(outputs.model))


def _optimise(source: Path, target: Path) -> Path:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageError(f"onnxruntime can't load the model: {first_line(error)}") from error
    return target
