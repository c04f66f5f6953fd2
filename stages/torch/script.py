"""`torch.script`: the model as TorchScript by compilation, control flow kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from deploy_runner.sdk import Context, Stage, StageError, first_line

from ..model import branches, bundles
from ..model.bundles import Bundle
from . import scripted, torchscript

if TYPE_CHECKING:
    import torch


class TorchScript(Stage):
    """Compile the model to TorchScript, with control flow that depends on the data.

    Inputs are sought that make each line choose both of its sides, and the program is compared on
    them too; the figure `branches` says for which lines they were found. Upstream has deprecated
    TorchScript since torch 2.11; it stays here, beside torch.export.
    """

    uses = "torch.script"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch",)
    extra = "torch"

    class Params(torchscript.Params):
        """How close the program must be."""

    class Inputs(torchscript.Inputs):
        """The model."""

    class Outputs(torchscript.Outputs):
        """The program."""

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Compile, save, load back, compare."""
        import torch

        bundle = bundles.load_bundle(inputs.model)
        if not bundle.is_script:
            bundle.need_python("torch.trace or torch.export")
        with torchscript.quiet():
            try:
                program = _script(bundle)
            except (
                RuntimeError,
                torch.jit.frontend.FrontendError,
                AttributeError,
                OSError,
                TypeError,
            ) as error:
                raise _refusal(error) from error
        found = branches.exercise(bundle)
        if found.sides():
            ctx.figure("branches", found.sides())  # type: ignore[arg-type]
        torchscript.deliver(ctx, bundle, program, params, outputs.model, found)


def _script(bundle: Bundle) -> torch.jit.ScriptModule:
    """Compile the model, unless it is compiled already. Raises what torch.jit.script raises."""
    if bundle.is_script:
        return cast("torch.jit.ScriptModule", bundle.module())
    return scripted.script(bundle.own_module(), bundle.input_names)


def _refusal(error: Exception) -> StageError:
    """Name what the compiler can't do, and the user's line it points at."""
    import re

    found = re.search(r'File "([^"/][^"]*)", line (\d+)', str(error))
    where = f" at {found.group(1)}:{found.group(2)}" if found else ""
    said = f"the model can't be compiled{where}: {first_line(error)}"
    return StageError(said, fix="try torch.trace or torch.export")
