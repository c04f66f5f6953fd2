"""`torch.script`: the model as TorchScript by compilation, control flow kept."""

from __future__ import annotations

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
)

from . import _bundle, _torchscript


class TorchScript(Stage):
    """Compile the model to TorchScript, with control flow that depends on the data."""

    uses = "torch.script"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch",)
    extra = "torch"

    class Params(StageParams):
        """How close the program must be."""

        freeze: bool = Field(False, description="inline the weights and fold batch normalisation")
        atol: float = Field(1e-5, ge=0, description="absolute tolerance against eager")
        rtol: float = Field(1e-5, ge=0, description="relative tolerance against eager")

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The program."""

        model: File = Output("model.pt", "TorchScript, loaded back and compared")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Compile, save, load back, compare."""
        import torch

        bundle = _bundle.load_bundle(inputs.model)
        with _torchscript.quiet():
            try:
                program = torch.jit.script(bundle.module())
            except (
                RuntimeError,
                torch.jit.frontend.FrontendError,
                AttributeError,
                TypeError,
            ) as error:
                raise _refusal(error) from error
            if params.freeze:
                program = torch.jit.freeze(program)
        _torchscript.save(program, outputs.model)
        _torchscript.verify(ctx, bundle, outputs.model, atol=params.atol, rtol=params.rtol)


def _refusal(error: Exception) -> StageError:
    """Name what the compiler can't do, and the user's line it points at."""
    import re

    text = str(error).strip()
    found = re.search(r'File "([^"/][^"]*)", line (\d+)', text)
    where = f" at {found.group(1)}:{found.group(2)}" if found else ""
    said = text.partition("\n")[0]
    return StageError(f"the model can't be compiled{where}: {said}", fix="try torch.trace or torch.export")
