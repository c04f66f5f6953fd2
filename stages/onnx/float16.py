"""`onnx.float16`: an ONNX model with half-precision weights."""

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
    first_line,
)

from ..model import bundles, fresh_inputs, judging, protos
from ..model.compare import compare, gate

_HALF = 10  # TensorProto.FLOAT16


class OnnxFloat16(Stage):
    """Convert an ONNX model to float16, half the size, and compare it with the original.

    Inputs and outputs stay float32 unless `keep_io` is off. float16 is for GPUs and for storage:
    CPUs compute it in float32, so it isn't faster there.
    """

    uses = "onnx.float16"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(judging.Floors):
        """What to convert, and how close it must be."""

        keep_io: bool = Field(True, description="keep float32 inputs and outputs")
        exclude: list[str] = Field(default=[], description="names of nodes to keep in float32")
        atol: float = Field(1e-2, ge=0, description="absolute tolerance against the reference")
        rtol: float = Field(1e-2, ge=0, description="relative tolerance against the reference")

    class Inputs(StageInputs):
        """The float model."""

        model: File | Folder = Field(description="the float32 ONNX model")
        reference: Folder = Field(description="the bundle, to compare on its cases")

    class Outputs(StageOutputs):
        """The float16 model."""

        model: Folder = Output("model", "model.onnx, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Convert, save, load back, compare."""
        import numpy as np
        from onnxruntime.transformers.float16 import convert_float_to_float16

        logging.getLogger().setLevel(logging.ERROR)
        model = protos.load_proto(inputs.model)
        protos.refuse_quantized(model)
        protos.refuse_unknown_nodes(model, params.exclude)
        try:
            halved = convert_float_to_float16(
                model, keep_io_types=params.keep_io, node_block_list=params.exclude, disable_shape_infer=True
            )
        except Exception as error:
            said = f"the model can't be converted: {first_line(error)}"
            raise StageError(
                said, fix="check the file by onnx.check, or `exclude` the nodes named"
            ) from error
        protos.save_proto(halved, outputs.model)
        run = protos.runner(outputs.model, threads=ctx.threads)
        kinds = {slot.name: slot.type for slot in protos.session(outputs.model, threads=1).get_inputs()}

        def cast(arrays: bundles.Arrays) -> bundles.Arrays:
            return run({n: a.astype(np.float16) if "float16" in kinds[n] else a for n, a in arrays.items()})

        if not any(tensor.data_type == _HALF for tensor in protos.all_tensors(halved.graph)):
            raise StageError("nothing was converted: no weight belongs to an operator that supports float16",
                             fix="shorten `exclude`")  # fmt: skip
        cases = bundles.load_bundle(inputs.reference).cases
        reference = protos.runner(inputs.model, threads=ctx.threads)
        judged = {judging.FRESH: judging.answered(reference, fresh_inputs.from_cases(cases))}
        judging.judge(ctx, params, cast, judged, lambda: (
            "values above 65504 overflow float16", "keep these nodes in float32 with `exclude`"
        ))  # fmt: skip
        parity = compare(cases, cast, atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        before, after = protos.size_bytes(inputs.model), protos.size_bytes(outputs.model)
        ctx.figure("bytes", after)
        ctx.figure("smaller", round(before / after, 3))
