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

    The stage looks for inputs that make each line take both branches, and compares the program on
    them too; the figure `branches` says for which lines it found some. TorchScript is deprecated
    upstream since torch 2.11; it stays supported here, beside torch.export.
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
        bundle = bundles.load_bundle(inputs.model)
        if not bundle.is_script:
            bundle.need_python("torch.trace or torch.export")
        with torchscript.quiet():
            try:
                program = _script(bundle)
            except StageError:
                raise
            except Exception as error:  # The compiler has many.
                raise _refusal(error, bundle) from error
        found = branches.exercise(bundle)
        if found.sides():
            ctx.figure("branches", found.sides())  # type: ignore[arg-type]
        torchscript.deliver(ctx, bundle, program, params, outputs.model, found)


def _script(bundle: Bundle) -> torch.jit.ScriptModule:
    """Compile the model, unless it is compiled already. Raises what torch.jit.script raises."""
    if bundle.is_script:
        return cast("torch.jit.ScriptModule", bundle.module())
    return scripted.script(bundle.own_module(), bundle.arguments)


def _refusal(error: Exception, bundle: Bundle) -> StageError:
    """Name what the compiler can't do, and the user's line it points at."""
    import re

    found = re.search(r'File "([^"/][^"]*)", line (\d+)', str(error))
    where = f" at {found.group(1)}:{found.group(2)}" if found else ""
    nested = [name for name, tree in bundle.arguments.items() if not isinstance(tree, str)]
    if nested and (found is None or found.group(1).startswith("<")):
        return StageError(
            f"the model can't be compiled: forward() takes {' and '.join(nested)} made of several tensors, "
            f"of a type that TorchScript doesn't know: {first_line(error)}",
            fix="annotate it as dict[str, torch.Tensor], list[torch.Tensor] or a NamedTuple, or try "
            "torch.trace or torch.export",
        )
    said = f"the model can't be compiled{where}: {first_line(error)}"
    return StageError(said, fix="try torch.trace or torch.export")
