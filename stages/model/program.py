"""`model.program`: TorchScript or an exported program (.pt2) → a checked model bundle."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    closest,
)

from . import exported, npz, programs, symbols
from .axes import Axis, batch_label
from .bundles import Port
from .examples import DType, Dynamic, Example, axes_of, port_of, ports_of, with_batch
from .exported import Declared
from .preparing import Asked, copy_code, prepare
from .variation import Source

if TYPE_CHECKING:
    from torch import nn


class ModelProgram(Stage):
    """Use a TorchScript file or an exported program (.pt2) as the model, and store what it computes.

    Both are loaded only with `trust: true`, because loading them runs code. An exported program
    contains its inputs and their possible sizes. TorchScript, deprecated upstream since torch 2.11,
    needs an `example` of each input. A program made on a GPU is moved to the CPU.
    """

    uses = "model.program"
    packages = ("torch", "numpy")
    preload = ("torch",)
    facets = ("arch", "isa")
    extra = "torch"

    class Params(Asked):
        """What the file doesn't say."""

        example: Example | dict[str, Example] | None = Field(
            None,
            description="of TorchScript: one example input, or one for each argument; of an exported "
            "program: what replaces its own example of some inputs",
        )
        dynamic: Dynamic | None = Field(
            None,
            description="input → axis → name of a variable size, or {name, multiple_of, min, max} (default: "
            "of TorchScript axis 0, of an exported program all that it lets vary)",
        )

        operators: Code | None = Field(
            None,
            description="what registers operators that the program uses and torch doesn't have, as "
            "path/to/file.py:name or package.module:name, e.g. torchvision.ops:nms",
        )

    class Inputs(StageInputs):
        """The file."""

        program: File = Field(description="the .pt of torch.jit.save, or the .pt2 of torch.export.save")
        samples: File | None = Field(
            None, description="an .npz of real samples: by input name, or `x` for the only input"
        )

    class Outputs(StageOutputs):
        """The bundle."""

        model: Folder = Output("model", "the input of every conversion")
        checklist: File = Output("checklist.json", "the result of the pre-save checklist")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Refuse, load, find out what it takes, run, store."""
        kind = _kind(inputs.program)
        instead = "use model.prepare with the training checkpoint and a factory"
        programs.refuse_without_trust(kind, trust=ctx.trust, instead=instead)
        samples = npz.read_arrays(inputs.samples) if inputs.samples else None
        ctx.figure("kind", kind)
        if params.operators:
            ctx.load(params.operators)
        if kind == "torchscript":
            file = ctx.workdir / "program.pt"
            programs.write_clean_script(inputs.program, file)
            module = _script(file, params)
            given, batch, named = ports_of(module, params.example or {}, params.dynamic)
            axes = axes_of(params.dynamic, given)
        else:
            program = programs.exported(inputs.program)
            module, file = exported.as_module(program, guarded=True), ctx.workdir / "program.pt2"
            file.write_bytes(_clean(program))
            given, axes = _declared(ctx, program, params)
            batch, called = batch_label([port.dynamic for port, _ in given])
            named = called and params.dynamic is not None
            given = [(with_batch(port, batch), example) for port, example in given]
        packages = {n: v for n, v in ctx.packages.items() if n not in self.packages}
        prepare(
            ctx, module, Source(given, batch, samples), axes, params,
            _Saved(file, params.operators or "", ctx.code_files, packages),
            outputs.model, outputs.checklist, named=named,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Saved:
    """A module that is loaded from a program's file, when what registers its operators was imported."""

    file: Path
    operators: str
    code: Mapping[str, Path]
    packages: Mapping[str, str]

    def write(self, folder: Path) -> dict[str, Any]:
        """Copy the file and the code."""
        shutil.copyfile(self.file, folder / self.file.name)
        copy_code(self.code, folder)
        return {"program": self.file.name, "operators": self.operators, "packages": dict(self.packages)}


def _kind(path: Path) -> programs.Kind:
    kind = programs.kind_of(path)
    if kind is None:
        raise StageError(f"{path.name} is neither TorchScript nor an exported program (.pt2)",
                         fix="use checkpoint.state_dict and model.prepare for a checkpoint")  # fmt: skip
    if kind == "aot":
        raise StageError("the file is a package of AOTInductor: machine code, which can't be converted",
                         fix="use the exported program (.pt2) that it was compiled from")  # fmt: skip
    return kind


def _script(path: Path, params: ModelProgram.Params) -> nn.Module:
    """Return a TorchScript program. Raises StageError with the line to write where it has no example."""
    module = programs.script(path)
    programs.refuse_other_than_tensors(module)
    if not params.example:
        raise StageError("a TorchScript program doesn't say which shapes it takes",
                         fix=f"set `{programs.example_line(module)}`")  # fmt: skip
    return module


def _clean(program: Any) -> memoryview:
    """Return a program's bytes without what tells where it was exported."""
    import torch

    exported.forget_paths(program)
    made = io.BytesIO()
    torch.export.save(program, made)
    return made.getbuffer()


def _declared(
    ctx: Context, program: Any, params: ModelProgram.Params
) -> tuple[list[tuple[Port, Example]], dict[str, Axis]]:
    """Return the inputs that an exported program declares, and the sizes of their axes."""
    inputs = exported.inputs_of(program)
    if not inputs:
        raise StageError("the program has no input that is a tensor: it computes the same for everybody")
    examples = _examples(inputs, params.example)
    ports = [
        (port_of(given.name, (given.name,), examples[given.name], params.dynamic or {}), examples[given.name])
        for given in inputs
    ]
    if params.dynamic is None:
        labels, kept = symbols.labelled(inputs)
        ports = [(replace(port, dynamic=labels[port.name]), example) for port, example in ports]
        if kept:
            ctx.log(f"others depend on their size, so it stays that of the example: {', '.join(kept)}")
    for unknown in set(params.dynamic or {}) - examples.keys():
        raise StageError(f"dynamic: there is no input {unknown!r}, only {', '.join(examples)}")
    labels = {port.name: dict(port.dynamic) for port, _ in ports}
    axes = symbols.limited(inputs, labels, exported.axes_of(program), axes_of(params.dynamic, ports))
    return ports, axes


def _examples(
    inputs: Sequence[Declared], asked: Example | Mapping[str, Example] | None
) -> dict[str, Example]:
    """Return the program's own examples, and those that the user gave in their place."""
    found = {given.name: _example(given) for given in inputs}
    if isinstance(asked, Example):
        asked = {inputs[0].name: asked}
    for name, example in (asked or {}).items():
        if name not in found:
            raise StageError(f"the program has no input {name!r}, it has {', '.join(found)}",
                             fix=closest(name, found))  # fmt: skip
        found[name] = example
    for given in inputs:
        shape, dims = found[given.name].shape, given.dims
        fits = len(shape) == len(dims) and all(
            isinstance(d, str) or d == n for d, n in zip(dims, shape, strict=True)
        )
        if not fits or found[given.name].dtype != given.dtype:
            raise StageError(
                f"example: the program takes {given}, not {found[given.name].dtype} of shape {shape}",
                fix="use such an example, or remove it",
            )
    return found


def _example(given: Declared) -> Example:
    """Return a program's own example, with the range of its whole numbers."""
    if given.dtype not in get_args(DType):
        said = f"the program's input {given.name!r} is {given.dtype}, which data files can't contain"
        raise StageError(said, fix="export it with a step before it that takes float32")
    low, high = 0, 2
    if given.values is not None and not given.values.is_floating_point() and given.values.numel():
        low, high = min(0, int(given.values.min())), max(2, int(given.values.max()) + 1)
    return Example(shape=list(given.shape), dtype=cast("DType", given.dtype), low=low, high=high)
