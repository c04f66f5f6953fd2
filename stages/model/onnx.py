"""`model.onnx`: an .onnx file that somebody else has made, as the reference of itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

from . import bundles, declared, moving, npz, protos
from .axes import Axis
from .bundles import Case, Port
from .checklist import Check, OutputParams, Ports, batches, judged, ran, record
from .compare import Model, eps_limit, largest
from .exploring import Asked, Explored, explored
from .external import check_external_data
from .precision import eps_of
from .variation import Variation, output_port

if TYPE_CHECKING:
    import onnx

_ROUNDING = {10: 2.0**-10, 16: 2.0**-7}
"""TensorProto's FLOAT16 and BFLOAT16 → their rounding."""
_DYNAMIC_INT8 = 0.05
"""So much a sample's result may depend on its batch, whose values give the steps of dynamic int8."""


class Range(StageParams):
    """The sizes that an axis may have, and one to begin with."""

    example: int | None = Field(None, ge=1, description="a size that the model takes (default: one is found)")
    multiple_of: int = Field(1, ge=1, description="only multiples of this number")
    min: int = Field(1, ge=1, description="the smallest size")
    max: int | None = Field(None, ge=1, description="the largest size (default: any)")


Size = Annotated[int, Field(ge=1)]


class ModelOnnx(Stage):
    """Use an existing .onnx file as the model: check it, and store what it computes as the reference.

    Models made from it are compared with what onnxruntime computes for the file itself. It is run
    at two or more sizes of every dynamic axis: those of the samples, or sizes that its operators
    accept.
    """

    uses = "model.onnx"
    packages = ("onnx", "onnxruntime", "numpy")
    preload = ("onnx", "onnxruntime")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(OutputParams):
        """What the file doesn't say."""

        sizes: dict[str, Size | Range] = Field(
            default={},
            description="dynamic axis → its only size, or {example, multiple_of, min, max} (default: found "
            "by trying); an axis without a name is batch, height, width, length or INPUT_AXIS",
        )
        batch_tolerance: float | None = Field(
            None, ge=0, description="how far a sample's result may depend on its batch (default: 1e-4; "
            "0.05 where int8 is quantized dynamically)",
        )  # fmt: skip

    class Inputs(StageInputs):
        """The file."""

        model: File | Folder = Field(description="the .onnx file, or the folder of it and its external data")
        samples: File | None = Field(
            None, description="an .npz of real samples: by input name, or `x` for the only input"
        )

    class Outputs(StageOutputs):
        """The bundle, and the file alone."""

        model: Folder = Output(
            "model", "the bundle: the `reference` and `model` of the stages that take ONNX"
        )
        onnx: Folder = Output("onnx", "model.onnx alone, and model.onnx.data if it has external data")
        checklist: File = Output("checklist.json", "the result of the checklist")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Check from the outside in, find sizes, name the axes in the file, run what was written."""
        source = protos.onnx_file(inputs.model)
        model = _read(source)
        original = model.SerializeToString(deterministic=True)
        declared.tidy(model)
        file = _placed(model, source, outputs.model)
        samples = npz.read_arrays(inputs.samples) if inputs.samples else None
        found = _explored(ctx, model, file, params, samples)
        outs = _outputs(found.variation, found.batch)
        declared.write_axes(model, {port.name: port for port in (*found.ports, *outs)}, found.new)
        changed = model.SerializeToString(deterministic=True)
        file.write_bytes(source.read_bytes() if changed == original else changed)
        run = protos.runner(file, threads=ctx.threads)
        found.variation.cases = [replace(c, outputs=run(c.inputs)) for c in found.variation.cases]
        ports, independent = _judged(model, found, Ports(found.ports, outs), run, params)
        lines = _lines(model, file, found, samples) | ran(
            run, found.variation, ports, independent,
            expect_shape=params.expect_shape, nonfinite=params.nonfinite,
        )  # fmt: skip
        _write(outputs.model, model, ports, found)
        _copy(outputs.model, outputs.onnx)
        ctx.figure("opset", protos.opset_of(model))
        ctx.figure("nodes", len(model.graph.node))
        ctx.figure("bytes", protos.size_bytes(outputs.onnx))
        ctx.figure("cases", [case.name for case in found.variation.cases])
        record(ctx, lines, outputs.checklist)


def _read(file: Path) -> onnx.ModelProto:
    """Read a file without its external data, which is checked. Raises StageError."""
    model = protos.load_proto(file, weights=False)
    try:
        check_external_data(model, file.parent)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"the ONNX model is damaged: {first_line(error)}"
        raise StageError(said, fix="export it again") from error
    return model


def _placed(model: onnx.ModelProto, source: Path, folder: Path) -> Path:
    """Write the model to its place, with its external data in it, or in one file where that is large."""
    folder.mkdir(exist_ok=True)
    moving.take_data(model, source.parent, folder)
    file = folder / protos.FILE_NAME
    file.write_bytes(model.SerializeToString(deterministic=True))
    return file


def _explored(
    ctx: Context, model: onnx.ModelProto, file: Path, params: ModelOnnx.Params,
    samples: Mapping[str, Any] | None,
) -> Explored:  # fmt: skip
    opened = protos.session(file, threads=ctx.threads)
    declared.refuse_foreign_types(opened)
    given = declared.inputs_of(model, samples)
    ranges = {label: said for label, said in params.sizes.items() if isinstance(said, Range)}
    asked = Asked(
        {label: said for label, said in params.sizes.items() if isinstance(said, int)},
        {label: Axis(label, said.multiple_of, said.min, said.max) for label, said in ranges.items()},
        {label: said.example for label, said in ranges.items() if said.example is not None},
    )
    return explored(model, given, protos.running(opened), asked, samples)


def _outputs(found: Variation, batch: str | None) -> list[Port]:
    arrays = found.cases[0].outputs
    return [output_port(name, str(array.dtype), found, batch) for name, array in arrays.items()]


def _judged(
    model: onnx.ModelProto, found: Explored, ports: Ports, run: Model, params: ModelOnnx.Params
) -> tuple[Ports, Check]:
    """Say whether what stands first is a batch, and whether its samples are independent."""
    tolerance = params.batch_tolerance
    if tolerance is None and any(node.op_type.startswith("DynamicQuantize") for node in model.graph.node):
        tolerance = _DYNAMIC_INT8
    independent = batches(run, found.variation, ports, tolerance, named=found.named)
    if found.named or found.batch is None:
        return ports, independent
    return judged(found.batch, ports, independent)


def _lines(
    model: onnx.ModelProto, file: Path, found: Explored, samples: Mapping[str, Any] | None
) -> dict[str, Check]:
    """Return the lines that are about the file, and about what it was run with."""
    lines = {
        "loads": (True, f"opset {protos.opset_of(model)}, IR {model.ir_version}, "
                        f"{len(model.graph.node)} nodes, by onnxruntime"),
        "valid ONNX": (True, _checker_says(file)),
    }  # fmt: skip
    if samples is not None:
        return {**lines, "inputs": (True, "the samples")}
    values = ", ".join(f"{name} {kind}" for name, kind in found.kinds.items())
    guessed = f"; the sizes of {', '.join(found.guessed)} are guessed" if found.guessed else ""
    return {**lines, "inputs": (True, f"made up: {values}{guessed}")}


def _checker_says(file: Path) -> str:
    import onnx

    try:
        onnx.checker.check_model(str(file))
    except Exception as error:  # What onnxruntime runs is a model, whatever else is said of it.
        return f"onnxruntime runs it, but onnx.checker says: {first_line(error)}"
    return "onnx.checker agrees"


def _write(folder: Path, model: onnx.ModelProto, ports: Ports, found: Explored) -> None:
    cases = found.variation.cases
    data = {
        "onnx": protos.FILE_NAME,
        "inputs": [port.as_dict() for port in ports.inputs],
        "outputs": [port.as_dict() for port in ports.outputs],
        "precision": {case.name: _allowed(case, _rounding(model)) for case in cases},
        "axes": [axis.as_dict() for axis in found.variation.axes.values()],
    }
    bundles.write_bundle(folder, data, cases)


def _rounding(model: onnx.ModelProto) -> float:
    """Return the rounding of the coarsest type in which a file keeps numbers."""
    return max((_ROUNDING.get(t.data_type, 0.0) for t in protos.tensors_of(model)), default=0.0)


def _allowed(case: Case, rounding: float) -> dict[str, dict[str, float]]:
    """Return each output's scale, and 64 units of rounding at it: the file can't be run in float64."""
    found = {}
    for name, array in case.outputs.items():
        eps = max(rounding, eps_of(str(array.dtype)) or 0.0)
        found[name] = {"scale": largest(array), "allowed": eps_limit(array, eps=eps)}
    return found


def _copy(bundle: Path, folder: Path) -> None:
    """Copy the model alone out of its bundle."""
    folder.mkdir(exist_ok=True)
    for name in (protos.FILE_NAME, protos.DATA_NAME):
        if (bundle / name).is_file():
            shutil.copyfile(bundle / name, folder / name)
