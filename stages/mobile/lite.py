"""`mobile.lite`: the model for PyTorch's lite interpreter (.ptl)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

from ..model import branches, bundles
from ..model.bundles import Bundle
from ..model.compare import Model, Tolerances, compare, gate
from ..model.flattening import named_arrays
from ..torch import torchscript
from ..torch.trace import trace
from . import snippets


class MobileLite(Stage):
    """Save the model for the lite interpreter on phones; load it back and compare.

    The model is frozen, and optimised for mobile if this torch has XNNPACK; the figure `optimized`
    says whether it was. Upstream recommends ExecuTorch for new apps: see mobile.executorch.
    """

    uses = "mobile.lite"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(Tolerances):
        """How close the program must be."""

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")
        program: File | None = Field(
            None, description="the program of torch.script, for a model that can't be traced"
        )

    class Outputs(StageOutputs):
        """The program, and code that runs it."""

        model: File = Output("model.ptl", "loaded and run by the lite interpreter")
        snippets: Folder = Output("snippets", "Kotlin and Swift with the model's shapes")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Trace, freeze, optimise, save, load back, compare."""
        bundle = bundles.load_bundle(inputs.model)
        program = torchscript.load(inputs.program) if inputs.program else trace(bundle)
        ready, optimized = _optimized(program)
        _save(ready, outputs.model)
        run = runner(outputs.model, bundle)
        parity = compare(bundle.cases, run, atol=params.atol, rtol=params.rtol)
        gate(ctx, parity, atol=params.atol, rtol=params.rtol)
        branches.check(branches.exercise(bundle), run)
        snippets.write(outputs.snippets, "lite", bundle.inputs, bundle.outputs)
        ctx.figure("optimized", optimized)
        ctx.figure("bytes", outputs.model.stat().st_size)


def _optimized(program: Any) -> tuple[Any, str]:
    """Freeze the program, and optimise it where this torch can; return what was done."""
    import torch
    import torch.backends.xnnpack
    from torch.utils.mobile_optimizer import optimize_for_mobile

    with torchscript.quiet():
        if torch.backends.xnnpack.enabled:  # type: ignore[attr-defined]
            return optimize_for_mobile(program), "optimize_for_mobile"
        # A loaded program is frozen already where its maker asked for it, and refuses a second time.
        frozen = torch.jit.freeze(program) if hasattr(program, "training") else program
    return frozen, "only frozen: this build of torch has no XNNPACK"


def _save(program: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = io.BytesIO(program._save_to_buffer_for_lite_interpreter())
    path.write_bytes(torchscript.without_debug_files(archive))


def runner(path: Path, bundle: Bundle) -> Model:
    """Return a program of the lite interpreter as a function of arrays by name."""
    import torch
    from torch.jit.mobile import _load_for_lite_interpreter

    try:
        with torchscript.quiet():
            module = _load_for_lite_interpreter(str(path))
    except RuntimeError as error:
        raise StageError(f"the lite interpreter can't load the program: {first_line(error)}") from error

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            result = module(*bundles.tensors(arrays, bundle.input_names))
        return named_arrays(result, bundle.output_names)

    return run
