"""`torch.export`: the model as an exported program (.pt2), the successor of TorchScript."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

from ..model import bundles
from ..model.axes import Axis
from ..model.bundles import Bundle
from ..model.compare import Model, Tolerances, compare, gate
from ..model.exported import forget_paths
from ..model.flattening import named_arrays
from ..model.wording import user_line

if TYPE_CHECKING:
    import torch

_FIXED = re.compile(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)")
_SUGGESTED = re.compile(r"^\s*([a-zA-Z]\w*) = (?:Dim\('\w+'((?:, \w+=\d+)+)\)|(\d+)\*\w+)$", re.MULTILINE)
_LIMIT = re.compile(r"(min|max)=(\d+)")


class TorchExport(Stage):
    """Export the model as a .pt2 program with dynamic shapes, loaded back and compared.

    The stage fails on control flow that depends on the data, and names its line: write it with
    torch.cond.
    """

    uses = "torch.export"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch",)
    extra = "torch"

    class Params(Tolerances):
        """How close the program must be."""

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The program."""

        model: File = Output("model.pt2", "the exported program")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Export, strip, save, load back, compare."""
        import torch

        bundle = bundles.load_bundle(inputs.model)
        program = exported(bundle, bundle.example())
        with outputs.model.open("wb") as file:  # To a name, the name would be in the bytes.
            torch.export.save(program, file)
        parity = compare(bundle.cases, runner(outputs.model, bundle), atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        ctx.figure("bytes", outputs.model.stat().st_size)
        ctx.figure("cases", [case.name for case in bundle.cases])


def exported(bundle: Bundle, example: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    """Export a bundle's model with its axes, and without anything that tells where it was exported.

    Of an axis in steps one step is a size like others, which torch else takes for the constant 1.
    """
    import torch
    from torch.fx.experimental import _config

    module = bundle.exportable()
    stepped = any(axis.multiple_of > 1 for axis in bundle.axes.values())
    dims = {label: dimension(axis) for label, axis in bundle.axes.items()}
    shapes = tuple(
        {axis: dims[label] for axis, label in port.dynamic.items()} or None for port in bundle.inputs
    )
    try:
        with torch.no_grad(), _config.patch(backed_size_oblivious=stepped):  # type: ignore[attr-defined]
            program = torch.export.export(
                module, example, dynamic_shapes=shapes if dims else None, strict=False
            )
    except Exception as error:
        raise refusal(error) from error
    forget_paths(program)
    return program


def dimension(axis: Axis, most: int | None = None) -> Any:
    """Return an axis as torch.export takes it, with its smallest and largest size (here `most`)."""
    import torch

    name, step, most = re.sub(r"\W", "_", axis.label), axis.multiple_of, most or axis.max
    name = name if name.isidentifier() else f"_{name}"
    bounds: dict[str, int] = {"max": most // step} if most else {}
    if axis.min > 1:
        bounds["min"] = -(-axis.min // step)
    return torch.export.Dim(name, **bounds) if step == 1 else step * torch.export.Dim(f"_{name}", **bounds)


def refusal(error: Exception, chosen: Collection[int] = ()) -> StageError:
    """Say why torch.export refuses a model, with the user's line and the way out.

    `chosen` are largest sizes that the stage has set by itself: they are no limits of the model.
    """
    where = user_line(error)
    text = f"{type(error).__name__} {error}"
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in text:
        fix = "use torch.cond there, or torch.script for this model"
        return StageError(f"the model's control flow depends on its data{where}", fix=fix)
    if fixed := _FIXED.search(text):
        said = f"the model fixes the dynamic axis {fixed.group(1)!r} to {fixed.group(2)}{where}"
        return StageError(said, fix="remove it from model.prepare's `dynamic`, or use onnx.export")
    if "Constraints violated" in text:
        said = f"the model treats some sizes of a dynamic axis differently from others{where}"
        found = ", ".join(_suggested(text, chosen)) or "{name, multiple_of, min, max}"
        fix = f"declare {found} in model.prepare's `dynamic`, remove it there, or use torch.script"
        return StageError(said, fix=fix)
    return StageError(
        f"the model can't be exported: {first_line(error)}{where}",
        fix="try torch.trace or torch.script",
    )


def _suggested(text: str, chosen: Collection[int]) -> Iterator[str]:
    """Yield the axes that torch suggests (`h = Dim('h', min=5)`, `h = 8*_h`), as `dynamic` says them."""
    for name, bounds, step in _SUGGESTED.findall(text.partition("Suggested fixes:")[2]):
        limits = [
            (what, size) for what, size in _LIMIT.findall(bounds) if what == "min" or int(size) not in chosen
        ]
        found = [("multiple_of", step)] if step else limits
        if found:
            yield f"{{name: {name}, {', '.join(f'{what}: {size}' for what, size in found)}}}"


def runner(path: Path, bundle: Bundle) -> Model:
    """Return an exported program as a function of arrays by name."""
    import torch

    try:
        module = torch.export.load(path).module()
    except Exception as error:
        raise StageError(f"{path.name} is not an exported program: {first_line(error)}",
                         fix="use the output `model` of torch.export") from error  # fmt: skip

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with torch.no_grad():
                result = module(*bundles.tensors(arrays, bundle.input_names))
        except Exception as error:
            shapes = {name: tuple(array.shape) for name, array in arrays.items()}
            said = f"the program can't run inputs of shape {shapes}: {first_line(error)}"
            raise StageError(said, fix="set `min` and `max` in `dynamic`") from error
        return named_arrays(result, bundle.output_names)

    return run
