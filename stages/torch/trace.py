"""`torch.trace`: the model as TorchScript by tracing."""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import Context, Stage, StageError, first_line

from ..model import branches, bundles
from ..model.bundles import Bundle
from ..model.flattening import named_arrays
from ..model.wording import user_line
from . import torchscript

if TYPE_CHECKING:
    import torch

_ADVICE = "use torch.script for this model, which compiles both branches"


class TorchTrace(Stage):
    """Trace the model to TorchScript; fail on control flow that depends on the data.

    Every line of the model that looks at a value of its data is found and named, whichever branch
    the example takes. Then the trace is run on inputs of other sizes and values. TorchScript is
    deprecated upstream since torch 2.11; it stays supported here, beside torch.export.
    """

    uses = "torch.trace"
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
        """Trace, check other inputs, save, load back, compare."""
        bundle = bundles.load_bundle(inputs.model)
        torchscript.deliver(ctx, bundle, trace(bundle), params, outputs.model)


class DependsOnInputs(StageError):
    """A trace would keep what the model chose for the example; scripting keeps the choice."""


def trace(bundle: Bundle, found: branches.Branches | None = None) -> torch.jit.ScriptModule:
    """Trace a bundle's model, and try the trace on inputs of other sizes and values.

    `found` is what the model looks at, where that is known. Raises DependsOnInputs with the user's line
    where the model does something else for other inputs.
    """
    from torch import nn

    _refuse_looks(found or branches.exercise(bundle))
    module = bundle.module()
    try:
        return _traced(bundle, module)
    except DependsOnInputs:
        if not any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
            raise
    with torchscript.unfused():
        return _traced(bundle, module)


def _traced(bundle: Bundle, module: Any) -> torch.jit.ScriptModule:
    import torch

    others = _other_arrays(bundle, module)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            program: torch.jit.ScriptModule = torch.jit.trace(
                module, bundle.example(), check_inputs=_as_tensors(bundle, others), strict=False
            )
        except torch.jit.TracingCheckError as error:
            raise _depends(bundle, caught) from error
        except RuntimeError as error:
            where = user_line(error)
            raise StageError(f"the model can't be traced: {first_line(error)}{where}",
                             fix="try torch.script or torch.export") from error  # fmt: skip
    _refuse_other_results(bundle, module, program, others, caught)
    return program


def _refuse_looks(found: branches.Branches) -> None:
    for read in found.reads:
        if isinstance(read.value, bool):
            raise DependsOnInputs(f"the model's control flow depends on its data at {read.where}: a trace "
                                  "records one branch only", fix=_ADVICE)  # fmt: skip
    for read in found.reads:
        raise DependsOnInputs(f"the model converts a tensor to a number at {read.where}: a trace records "
                              "only the example's", fix="use torch.script for this model")  # fmt: skip


def _depends(bundle: Bundle, caught: list[warnings.WarningMessage]) -> DependsOnInputs:
    axes = f" ({', '.join(bundle.axes)})" if bundle.axes else ""
    said = f"the model's control flow depends on the sizes of its inputs{axes}{_suspect_line(caught)}"
    return DependsOnInputs(f"{said}: a trace records only the example's", fix=_ADVICE)


def _other_arrays(bundle: Bundle, module: Any) -> list[bundles.Arrays]:
    """Return inputs of other sizes, and of other values that the model takes: the signs turned, and zeros."""
    import torch

    taken: list[bundles.Arrays] = [case.inputs for case in bundle.cases[1:]]
    for arrays in itertools.islice(branches.probes(bundle), 2):
        try:
            with torch.no_grad(), torchscript.quiet():
                module(*bundles.tensors(arrays, bundle.input_names))
        except Exception:  # Lengths, say, that are not in order.
            continue
        taken.append(arrays)
    return taken


def _as_tensors(bundle: Bundle, others: list[bundles.Arrays]) -> list[tuple[torch.Tensor, ...]]:
    """Return new tensors at each call, because a model may write into its inputs."""
    return [bundles.tensors(arrays, bundle.input_names) for arrays in others]


def _refuse_other_results(
    bundle: Bundle, module: Any, program: Any, others: list[bundles.Arrays],
    caught: list[warnings.WarningMessage],
) -> None:  # fmt: skip
    """Compare with eager on the other inputs too: a check of graphs alone can miss a branch."""
    import torch

    for given, same in zip(_as_tensors(bundle, others), _as_tensors(bundle, others), strict=True):
        with torch.no_grad(), torchscript.quiet():
            expected = named_arrays(module(*given), bundle.output_names)
            try:
                actual = named_arrays(program(*same), bundle.output_names)
            except RuntimeError as error:
                raise _depends(bundle, caught) from error
        if branches.differing(expected, actual, branches.allowed(bundle, expected)):
            raise _depends(bundle, caught)


def _suspect_line(caught: list[warnings.WarningMessage]) -> str:
    """Return the user's line that a TracerWarning points at, installed packages left out."""
    for warning in caught:
        if "TracerWarning" in warning.category.__name__ and not warning.filename.startswith("/"):
            return f" at {warning.filename}:{warning.lineno}"
    return ""
