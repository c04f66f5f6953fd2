"""`torch.trace`: the model as TorchScript by tracing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import Context, Stage, StageError

from . import _bundle, _torchscript
from ._bundle import Bundle

if TYPE_CHECKING:
    import torch

_ADVICE = "use torch.script for this model, which keeps both branches"


class TorchTrace(Stage):
    """Trace the model to TorchScript, refusing control flow that depends on the data.

    The trace is run on inputs of other sizes and values; where the graphs differ the stage names
    the source line.
    """

    uses = "torch.trace"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch",)
    extra = "torch"

    Params = _torchscript.Params
    Inputs = _torchscript.Inputs
    Outputs = _torchscript.Outputs

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Trace, check other inputs, save, load back, compare."""
        bundle = _bundle.load_bundle(inputs.model)
        _torchscript.deliver(ctx, bundle, trace(bundle), params, outputs.model)


def trace(bundle: Bundle) -> torch.jit.ScriptModule:
    """Trace a bundle's model, and try the trace on inputs of other sizes and values.

    Raises StageError that names the user's line where the model's control flow depends on its data.
    """
    import torch

    module = bundle.module()
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            program = torch.jit.trace(
                module, bundle.example(), check_inputs=_other_inputs(bundle), strict=False
            )
        except torch.jit.TracingCheckError as error:
            where = _suspect_line(caught)
            raise StageError(f"the model's control flow depends on its data{where}: a trace keeps "
                             "one branch only", fix=_ADVICE) from error  # fmt: skip
        except RuntimeError as error:
            where = _bundle.user_line(error)
            said = _bundle.first_line(error)
            if said.startswith("Tracer cannot infer type"):  # The tensors are printed before the reason.
                said = str(error).rpartition("\n:")[2]
            raise StageError(f"the model can't be traced: {said}{where}",
                             fix="try torch.script or torch.export") from error  # fmt: skip
    _refuse_other_branches(bundle, module, program, caught)
    return program


def _other_inputs(bundle: Bundle) -> list[tuple[torch.Tensor, ...]]:
    """Return inputs of other sizes, and of other values: zeros, and the signs turned."""
    first = bundle.example()
    return [
        *(bundle.example(index) for index in range(1, len(bundle.cases))),
        tuple(t.neg() if t.is_floating_point() else t for t in first),
        tuple(t * 0 for t in first),
    ]


def _refuse_other_branches(
    bundle: Bundle, module: Any, program: Any, caught: list[warnings.WarningMessage]
) -> None:
    """Compare with eager on the other inputs too: a check of graphs alone can miss a branch."""
    import torch

    for example in _other_inputs(bundle):
        with torch.no_grad(), _torchscript.quiet():
            expected = _bundle.flatten_outputs(module(*example))
            actual = _bundle.flatten_outputs(program(*example))
        for name, tensor in expected.items():
            if tensor.shape != actual[name].shape or not torch.allclose(
                tensor.float(), actual[name].float(), atol=1e-3, rtol=1e-3, equal_nan=True
            ):
                raise StageError(f"the model's control flow depends on its data{_suspect_line(caught)}: "
                                 "a trace keeps one branch only", fix=_ADVICE)  # fmt: skip


def _suspect_line(caught: list[warnings.WarningMessage]) -> str:
    """Return the user's line that a TracerWarning points at, installed packages left out."""
    for warning in caught:
        if "TracerWarning" in warning.category.__name__ and not warning.filename.startswith("/"):
            return f" at {warning.filename}:{warning.lineno}"
    return ""
