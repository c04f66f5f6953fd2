"""Deliver a quantized module as TorchScript, proved against the float model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy_runner.sdk import Context, GateError, StageError, first_line

from ..model import branches, fresh_inputs, judging
from ..model.bundles import Bundle, Case
from ..model.compare import compare
from ..model.judging import Floors
from ..model.wording import user_line
from . import torchscript

_EXACT = {"atol": 1e-6, "rtol": 1e-6}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's notices that eager quantization is deprecated, and use its plain kernels."""
    import torch

    with torchscript.unfused(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def deliver(
    ctx: Context, bundle: Bundle, quantized: Any, path: Path, floors: Floors, samples: list[Mapping[str, Any]]
) -> None:
    """Trace, or script where a trace would keep one branch; save, load back, judge.

    The file is compared with the quantized module on all cases, and with the float one on the reference
    cases and on inputs that are made of these and of the calibration `samples`.

    Raises StageError where an operator has no quantized form, GateError where the file computes
    something else than the module, or is below the floors.
    """
    names = (bundle.input_names, bundle.output_names)
    further = branches.exercise(bundle).cases
    with quiet():
        try:
            reference = torchscript.runner(quantized, *names)
            cases = [replace(c, outputs=reference(c.inputs), allowed={}) for c in (*bundle.cases, *further)]
            program = _program(quantized, bundle, cases)
        except StageError:
            raise
        except Exception as error:
            raise _refusal(error) from error
        torchscript.save(program, path)
        run = torchscript.runner(torchscript.load(path), *names)
        loaded = compare(cases, run, **_EXACT)
        if loaded.excess > 0:
            raise GateError(f"the saved program differs from the quantized module by up to "
                            f"{loaded.max_abs:.3g}; worst at {loaded.worst}")  # fmt: skip
        fresh = [*fresh_inputs.from_cases(bundle.cases), *fresh_inputs.from_samples(samples)]
        original = torchscript.runner(bundle.module(), *names)
        judged = {judging.REFERENCE: bundle.cases, judging.FRESH: judging.answered(original, fresh)}
        judging.judge(ctx, floors, run, judged, _cause)
    before, after = bundle.weights_bytes, path.stat().st_size
    ctx.figure("bytes", after)
    ctx.figure("smaller", round(before / after, 3))


def _cause() -> tuple[str, str]:
    import torch

    if needs_vnni(torch.backends.quantized.engine):
        return ("the engine onednn overflows on x86 CPUs without VNNI", "use `engine: fbgemm`, the default")
    return ("the calibration samples are all alike or don't cover these inputs, or a mask of infinite or "
            "very large values leaves no steps for the rest",
            "calibrate on varied real samples, or use onnx.quantize_static")  # fmt: skip


def needs_vnni(engine: str) -> bool:
    """Tell whether an engine's sums of 8-bit products overflow on x86 without VNNI.

    The others round activations to 7 bits there; onednn doesn't, and torch warns of it.
    """
    return engine == "onednn"


def _program(quantized: Any, bundle: Bundle, cases: list[Case]) -> Any:
    """Return the module as TorchScript: traced, or scripted if a trace records one branch or size only."""
    import torch

    said = "a trace of the quantized model records one branch or size only"
    try:
        program = torch.jit.trace(quantized, bundle.example(), strict=False, check_trace=False)
        run = torchscript.runner(program, bundle.input_names, bundle.output_names)
        if compare(cases, run, **_EXACT).excess <= 0:
            return program
    except (RuntimeError, GateError) as error:
        if str(error).startswith("Tracer cannot infer type"):
            said = f"the quantized model can't be traced: {first_line(error)}"
    try:
        return torch.jit.script(quantized)
    except Exception as error:
        raise StageError(f"{said}, and it can't be scripted: {first_line(error)}",
                         fix="use onnx.quantize_static or onnx.quantize_dynamic") from error  # fmt: skip


def _refusal(error: Exception) -> StageError:
    """Name the operator that has no kernel for quantized tensors."""
    found = re.search(r"Could not run '([\w:.]+)'", str(error))
    if found is None:
        where = user_line(error)
        return StageError(f"the quantized model can't run: {first_line(error)}{where}",
                          fix="exclude the modules around it with `exclude`")  # fmt: skip
    return StageError(
        f"the operator {found.group(1)} has no int8 form in torch{user_line(error)}",
        fix="exclude the modules around it with `exclude`, or use onnx.quantize_static",
    )
