"""`openvino.convert`: an ONNX model as OpenVINO's IR, proved against the original."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

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
)

from ..model import branches, bundles, fresh_inputs, judging, protos
from ..model.bundles import Bundle
from ..model.compare import Model, Tolerances, compare, gate
from ..model.far import far_case
from . import ir

_LOSSY = 1e-2
_WIDE = "OpenVINO computes float64 in float32: set `atol`, or stay with ONNX"
_CONTROL = {"If", "Loop", "Scan"}
_QUANTIZED = re.compile(r"Quantize|Integer|NBits|^QLinear|^QGemm|^QAttention")


class OpenvinoConvert(Stage):
    """Convert an ONNX model to OpenVINO's IR, load it and compare it on the reference cases and at far sizes.

    If the ONNX model's control flow depends on its data, both are compared on inputs that may take
    another branch. It is run in float32. OpenVINO's default is bfloat16 on processors that have it;
    the figure `by_default` says how far that is from the original on this one.
    """

    uses = "openvino.convert"
    packages = ("openvino", "onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime")
    facets = ("arch", "isa")
    extra = "openvino"

    class Params(Tolerances, judging.Floors):
        """How to store weights, and how close it must be: the floors are those of float16."""

        precision: Literal["float32", "float16"] = Field(
            "float32", description="of the stored weights; float16 is half the size, within 0.01 by default"
        )

    class Inputs(StageInputs):
        """The ONNX model, and what it was made of."""

        model: File | Folder = Field(description="the ONNX model, e.g. of onnx.export")
        reference: Folder = Field(description="the bundle it was created from")

    class Outputs(StageOutputs):
        """The IR."""

        model: Folder = Output("model", "model.xml and model.bin, loaded and run")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Convert, save, load back, compare."""
        bundle = bundles.load_bundle(inputs.reference)
        file = protos.onnx_file(inputs.model)
        proto = protos.load_proto(file, weights=False)
        import openvino

        half, advice = params.precision == "float16", _advice(proto)
        try:
            made = openvino.convert_model(file)
        except Exception as error:
            raise StageError(f"OpenVINO can't convert the model: {ir.why(error)}",
                             fix=advice or "stay with ONNX, or replace that operator") from error  # fmt: skip
        ir.save(made, outputs.model, _names(proto), half=half)
        model = ir.read(outputs.model)
        _check_ports(bundle, model)
        run = ir.running(ir.compiled(model, threads=ctx.threads))
        original = protos.runner(file, threads=ctx.threads)
        if half:
            judged = {judging.FRESH: judging.answered(original, fresh_inputs.from_cases(bundle.cases))}
            judging.judge(ctx, params, run, judged, lambda: (
                "float16 has too few digits for some weights", "use `precision: float32`"
            ))  # fmt: skip
        _gate(ctx, params, bundle, original, run, advice)
        if any(node.op_type in _CONTROL for node in proto.graph.node):
            _check_choices(bundle, original, run)
        ctx.figure("by_default", _by_default(ctx, bundle, model))
        ctx.figure("bytes", protos.size_bytes(outputs.model))
        ctx.figure("cases", [case.name for case in bundle.cases])


def _advice(proto: Any) -> str:
    """Return what to do where a model that others have made smaller doesn't stay what it was."""
    if any(_QUANTIZED.search(node.op_type) for node in proto.graph.node):
        return "convert the float model of onnx.export, and quantize the result with openvino.quantize"
    if any(tensor.data_type == tensor.FLOAT16 for tensor in proto.graph.initializer):
        return "convert the float32 model of onnx.export with `precision: float16`"
    return ""


def _names(proto: Any) -> set[str]:
    """Return the names of an ONNX model's nodes and tensors."""
    found = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        found |= {node.name, *node.input, *node.output}
    return found


def _check_ports(bundle: Bundle, model: Any) -> None:
    """Compare the names and the dynamic axes of the file with the original's."""
    for kind, ports, found in (
        ("input", bundle.inputs, model.inputs),
        ("output", bundle.outputs, model.outputs),
    ):
        shapes = {name: port.partial_shape for port in found for name in port.names}
        for port in ports:
            if port.name not in shapes:
                raise StageError(f"the IR has no {kind} {port.name!r}, only {', '.join(shapes)}",
                                 fix="use the `reference` that the ONNX model was exported from")  # fmt: skip
            fixed = [label for axis, label in port.dynamic.items() if shapes[port.name][axis].is_static]
            if fixed and kind == "input":
                raise StageError(f"the axis {fixed[0]} of the input {port.name!r} is fixed in the IR",
                                 fix="check whether it is dynamic in the ONNX model")  # fmt: skip


def _gate(
    ctx: Context, params: OpenvinoConvert.Params, bundle: Bundle, original: Model, run: Model, fix: str
) -> None:
    """Compare on the cases with the reference, and at sizes far from theirs with the ONNX model."""
    atol, rtol = params.atol, params.rtol
    if params.precision == "float16" and atol is None and rtol is None:
        atol = rtol = _LOSSY
    wide = any(port.dtype == "float64" for port in (*bundle.inputs, *bundle.outputs))
    fix = fix or (_WIDE if wide else "")
    gate(ctx, compare(bundle.cases, run, atol=atol, rtol=rtol), atol=atol, rtol=rtol, fix=fix)
    far = far_case(bundle, original)
    if far is None:
        return
    try:
        found = compare([far], run, atol=atol, rtol=rtol)
        said = found.beyond(atol, rtol) if found.excess > 0 else ""
    except StageError as error:
        said = error.message
    if said:
        raise GateError(f"at {far.name} the result differs from the original: {said}", fix=fix)


def _check_choices(bundle: Bundle, original: Model, run: Model) -> None:
    """Compare on inputs of other signs and sizes, as far as the ONNX model takes them."""
    for inputs in branches.probes(bundle):
        try:
            expected = original(inputs)
        except StageError:  # An input of our own making may be none that the model takes.
            continue
        if name := branches.differing(expected, run(inputs), branches.allowed(bundle, expected)):
            raise GateError(f"the result differs from the original for data unlike the example's, "
                            f"on which the model's control flow depends: {name!r}")  # fmt: skip


def _by_default(ctx: Context, bundle: Bundle, model: Any) -> dict[str, Any]:
    """Return the type that OpenVINO computes in by itself here, and how far off the outputs then are."""
    opened = ir.compiled(model, threads=ctx.threads, precision="")
    kind = opened.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if kind == "f32":
        return {"precision": kind}
    try:
        found = compare(bundle.cases, ir.running(opened), atol=math.inf)
    except StageError as error:
        return {"precision": kind, "refused": error.message}
    return {"precision": kind, "max_abs": found.max_abs}
