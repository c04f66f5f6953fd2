"""`onnx.check`: everything that can be checked about an ONNX file without its original."""

from __future__ import annotations

import json
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
    first_line,
)

from ..model import protos
from ..model.external import check_external_data


class OnnxCheck(Stage):
    """Check an ONNX model: external data, checker, strict shape inference, onnxruntime.

    This checks the file alone, not what it computes: verify.parity runs the model and compares it.
    """

    uses = "onnx.check"
    packages = ("onnx", "onnxruntime")
    preload = ("onnx", "onnxruntime")
    extra = "onnx"

    class Inputs(StageInputs):
        """The model."""

        model: File | Folder = Field(description="an .onnx file, or the folder of an onnx stage")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("report.json", "what was checked, inputs, outputs, opset, operators")

    def run(self, ctx: Context, params: OnnxCheck.Params, inputs: Inputs, outputs: Outputs) -> None:
        """Check from the outside in: a later check may trust the earlier ones."""
        file = protos.onnx_file(inputs.model)
        model = protos.load_proto(inputs.model, weights=False)
        try:
            external = check_external_data(model, file.parent)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            said = f"the ONNX model is damaged: {first_line(error)}"
            raise StageError(said, fix="export it again") from error
        _run_checker(file)
        _infer_shapes(file, ctx.workdir / "inferred.onnx")
        session = protos.session(inputs.model, threads=ctx.threads)
        operators: dict[str, int] = {}
        for node in model.graph.node:
            operators[node.op_type] = operators.get(node.op_type, 0) + 1
        report: dict[str, Any] = {
            "opset": protos.opset_of(model),
            "ir_version": model.ir_version,
            "external_tensors": external,
            "operators": dict(sorted(operators.items())),
            "inputs": {i.name: [i.type, i.shape] for i in session.get_inputs()},
            "outputs": {o.name: [o.type, o.shape] for o in session.get_outputs()},
        }
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        ctx.figure("opset", report["opset"])
        ctx.figure("nodes", len(model.graph.node))
        ctx.figure("bytes", protos.size_bytes(inputs.model))


def _run_checker(file: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(file), full_check=True)
    except Exception as error:
        said = f"onnx.checker rejects the model: {first_line(error)}"
        raise GateError(said, fix="export the model again, with another `opset` or `exporter`") from error


def _infer_shapes(file: Path, target: Path) -> None:
    import onnx

    try:
        onnx.shape_inference.infer_shapes_path(str(file), str(target), strict_mode=True, data_prop=True)
    except Exception as error:
        raise GateError(f"the model's shapes are inconsistent: {first_line(error)}") from error
