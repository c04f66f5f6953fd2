"""Save TorchScript with bytes that depend on the program alone, and run it back."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    Output,
    StageError,
    StageInputs,
    StageOutputs,
    first_line,
)

from ..model import bundles, records
from ..model.branches import Branches, check
from ..model.bundles import Bundle
from ..model.compare import Model, Tolerances, compare, gate
from ..model.flattening import named_arrays

if TYPE_CHECKING:
    import torch


class Params(Tolerances):
    """How close the program must be."""

    freeze: bool = Field(False, description="inline the weights and fold batch normalisation")


class Inputs(StageInputs):
    """The model."""

    model: Folder = Field(description="the bundle of model.prepare")


class Outputs(StageOutputs):
    """The program."""

    model: File = Output("model.pt", "TorchScript, loaded back and compared")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's notices that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """Have attention layers run their plain operators: the fused ones look at the values of masks."""
    import torch

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def save(program: torch.jit.ScriptModule, path: Path) -> None:
    """Write the program without its debug files, which hold source paths."""
    import torch

    buffer = io.BytesIO()
    with quiet():
        torch.jit.save(program, buffer)
    path.write_bytes(without_debug_files(buffer))


def without_debug_files(archive: io.BytesIO) -> memoryview:
    """Copy the records of a TorchScript archive that the program alone depends on."""
    clean = io.BytesIO()
    records.rewrite(archive, clean, leave_out=records.DEBUG)
    return clean.getbuffer()


def load(path: Path) -> torch.jit.ScriptModule:
    """Read a program onto the CPU. Raises StageError where it isn't one."""
    import torch

    try:
        with quiet():
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return]
    except RuntimeError as error:
        said = f"{path.name} is not a TorchScript program: {first_line(error)}"
        raise StageError(said, fix="use the output of torch.trace or torch.script") from error


def runner(program: Any, inputs: list[str], outputs: list[str], device: Any = None) -> Model:
    """Return the program as a function of arrays by name; it lies on torch's `device` (default: the CPU)."""
    import torch

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad(), quiet():
            result = program(*(tensor.to(device) for tensor in bundles.tensors(arrays, inputs)))
        return named_arrays(result, outputs)

    return run


def deliver(
    ctx: Context, bundle: Bundle, program: Any, params: Params, path: Path, found: Branches | None = None
) -> None:
    """Freeze if asked, save, load back, run every reference case, and the branches that were `found`.

    Raises GateError beyond the tolerance.
    """
    import torch

    if params.freeze:
        with quiet():
            program = torch.jit.freeze(program)
    save(program, path)
    run = runner(load(path), bundle.input_names, bundle.output_names)
    parity = compare(bundle.cases, run, atol=params.atol, rtol=params.rtol)
    gate(ctx, parity, atol=params.atol, rtol=params.rtol)
    check(found or Branches(), run)
    ctx.figure("bytes", path.stat().st_size)
    ctx.figure("cases", [case.name for case in bundle.cases])
