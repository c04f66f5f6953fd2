"""The pre-save checklist: what has to hold of a model before anything is made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import Context, Field, GateError, StageError, StageParams

from .axes import rows
from .bundles import Case, Port
from .compare import Model, both_finite, largest
from .precision import eps_of

if TYPE_CHECKING:
    from torch import nn

    from .eager import Eager
    from .variation import Variation

__all__ = [
    "Check",
    "OutputParams",
    "Ports",
    "batches",
    "checklist",
    "digests",
    "judged",
    "ran",
    "record",
]

Check = tuple[bool, str]
"""Whether a line of the checklist holds, and its detail."""

Shapes = list[int] | dict[str, list[int]]
"""The shape of the first output, or of each by name."""


class OutputParams(StageParams):
    """What the user says of a model's outputs."""

    expect_shape: Shapes | None = Field(
        None, description="the output's shape for the first case, or one for each output"
    )
    nonfinite: Literal["refuse", "allow"] = Field(
        "refuse", description="whether outputs may hold inf and nan; conversions must keep them"
    )


_BATCH_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Ports:
    """The inputs and outputs of the model."""

    inputs: list[Port]
    outputs: list[Port]

    @property
    def batch(self) -> str | None:
        """Return the label of the batch."""
        return next((p.dynamic[p.batch] for p in self.inputs if p.batch is not None), None)

    def without_batch(self) -> Ports:
        """Return them with no axis of samples."""
        return Ports(*([replace(p, batch=None) for p in part] for part in (self.inputs, self.outputs)))


def digests(module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every tensor: a copy to compare with would double the memory."""
    import torch

    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def checklist(
    eager: Eager, found: Variation, ports: Ports, before: Mapping[str, str], independent: Check, *,
    expect_shape: Shapes | None, nonfinite: str,
) -> dict[str, Check]:  # fmt: skip
    """Return the lines by name; `before` are the digests from before the first run."""
    module = eager.module
    training = [name for name, part in module.named_modules() if part.training]
    tensors = [*module.named_parameters(), *module.named_buffers()]
    elsewhere = [name for name, t in tensors if t.device.type != "cpu"]
    grads = [name for name, p in module.named_parameters() if p.requires_grad]
    return {
        "eval mode": _none(training, "in training mode: {}", "every module"),
        "CPU tensors": _none(elsewhere, "elsewhere: {}", "every tensor"),
        "no gradients": _none(grads, "requires grad: {}", "every parameter"),
        **ran(eager, found, ports, independent, expect_shape=expect_shape, nonfinite=nonfinite),
        "no training-only state": _unchanged(before, digests(module)),
    }


def ran(
    model: Model, found: Variation, ports: Ports, independent: Check, *,
    expect_shape: Shapes | None, nonfinite: str,
) -> dict[str, Check]:  # fmt: skip
    """Return the lines of what a model of any kind computed."""
    return {
        "expected shapes": _shapes(found.cases[0], expect_shape, ports),
        "finite outputs": _finite(found.cases, nonfinite),
        "batch of one agrees": independent,
        "dynamic axes": (True, str(found)),
        "deterministic": _deterministic(model, found.cases[0]),
        "outputs depend on inputs": _dependent(model, found.cases, found.others),
    }


def _none(found: Sequence[str], said: str, well: str) -> Check:
    return not found, said.format(found[:3]) if found else well


def _deterministic(model: Model, case: Case) -> Check:
    """Run a case twice in a row: a model that keeps state may start again after inputs of another size."""
    again = [model(case.inputs) for _ in range(2)]
    same = all(_same(outputs, case.outputs) for outputs in again)
    said = "two runs differ: the model uses random numbers, or keeps state from one call to the next"
    return same, "three runs, identical bits" if same else said


def _same(outputs: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    import numpy as np

    return all(np.array_equal(outputs[name], array, equal_nan=True) for name, array in before.items())


def _dependent(model: Model, cases: Sequence[Case], others: Mapping[str, Any]) -> Check:
    """Say which inputs can be exchanged for others without any effect; all of them must not be."""
    import numpy as np

    if not any(array.size for case in cases for array in case.outputs.values()):
        return False, "every output is empty, so that nothing could be compared: give real `samples`"
    case = cases[0]
    tried = [name for name, array in others.items() if not np.array_equal(array, case.inputs[name])]
    floats = [name for name, array in case.outputs.items() if array.dtype.kind in "fcV" and array.size]
    silent = []
    for name in tried if floats else []:
        try:
            outputs = model({**case.inputs, name: others[name]})
        except StageError:  # Lengths, say, that go with no other values.
            continue
        if _same(outputs, case.outputs):
            silent.append(name)
    if silent and len(silent) == len(tried):
        said = "no output depends on any input: part of the model may never have been loaded"
        return False, f"{said}; if it has no answer to made-up inputs, give real `samples`"
    return True, f"no output depends on {', '.join(silent)}" if silent else "on every input that was varied"


def _unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> Check:
    changed = [name for name, digest in before.items() if after[name] != digest]
    return _none(changed, "a forward pass modifies {}", "kept")


def _finite(cases: Sequence[Case], nonfinite: str) -> Check:
    """Say where an output is not finite, and whether that was allowed."""
    import numpy as np

    for case in cases:
        for name, array in case.outputs.items():
            places = np.argwhere(~np.isfinite(array))
            if not len(places):
                continue
            value = array[tuple(places[0])]
            found = f"output {name!r} is {value:g} at {places[0].tolist()} of {case.name}"
            if nonfinite == "allow":
                return True, f"{found}: allowed"
            return False, f"{found}; if that is intended, set `nonfinite: allow`"
    return True, "every value"


def _shapes(case: Case, wanted: Shapes | None, ports: Ports) -> Check:
    shapes = {name: list(array.shape) for name, array in case.outputs.items()}
    if wanted is None:
        return True, ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if isinstance(wanted, list):
        wanted = {next(iter(shapes)): wanted}
    dynamic = {port.name: port.dynamic for port in ports.outputs}
    for name, shape in wanted.items():
        if name not in shapes:
            return False, f"there is no output {name!r}, only {', '.join(shapes)}"
        fits = len(shape) == len(shapes[name]) and all(
            size == got or axis in dynamic[name]
            for axis, (size, got) in enumerate(zip(shape, shapes[name], strict=True))
        )
        if not fits:
            batch = next((a for a, label in dynamic[name].items() if label == ports.batch), None)
            expected = [shapes[name][i] if i == batch and len(shapes[name]) > i else n
                        for i, n in enumerate(shape)]  # fmt: skip
            return False, f"{name} is {shapes[name]}, expected {expected}"
    return True, ", ".join(f"{name} {shape}" for name, shape in wanted.items())


def batches(model: Model, found: Variation, ports: Ports, tolerance: float | None, *, named: bool) -> Check:
    """Compare the first sample alone (or the fewest that the axis allows) with the same in its batch.

    What is not `named` a batch has to be seen to be one: if need be by more samples of them.
    """
    case, label = found.cases[0], ports.batch
    if label is None or found.sizes[0][label] < 2:
        return True, "the batch is fixed"
    axis, most = found.axes[label], found.sizes[0][label]
    sizes = [axis.nearest(1), *([] if named else [n for n in (most // 2, most - 1) if axis.allows(n)])]
    for size in sizes:
        alone = {p.name: rows(case.inputs[p.name], p.batch, slice(size)) for p in ports.inputs}
        try:
            single = model(alone)
            break
        except StageError:
            if named and size not in found.refused.get(label, []):
                raise
    else:
        return named, f"a batch of {size} fails"
    worst, allowed = 0.0, _BATCH_TOLERANCE if tolerance is None else tolerance
    for port in ports.outputs:
        within = rows(case.outputs[port.name], port.batch, slice(size))
        if port.batch is None or within.shape != single[port.name].shape:
            continue
        try:
            worst = max(worst, _apart(port.name, within, single[port.name]))
        except GateError as error:
            return False, error.message
        if tolerance is None:
            allowed = max(allowed, 16 * (eps_of(port.dtype) or 0.0))
    return worst <= allowed, f"relative difference {worst:.2g}, allowed {allowed:g}"


def _apart(name: str, within: Any, alone: Any) -> float:
    import numpy as np

    kind = np.complex128 if within.dtype.kind == "c" else np.float64
    finite = both_finite(f"output {name!r} of one sample", within, alone)
    difference = np.abs(alone.astype(kind)[finite] - within.astype(kind)[finite])
    return float(difference.max(initial=0)) / max(1.0, largest(within))


def judged(batch: str, ports: Ports, independent: Check) -> tuple[Ports, Check]:
    """Say whether what merely stands first is a batch, or a length, or nodes."""
    if all(port.batch is None for port in ports.outputs):
        independent = False, "no output has it"
    if independent[0]:
        return ports, independent
    return ports.without_batch(), (True, f"{batch} is not a batch axis: {independent[1]}")


def record(ctx: Context, lines: Mapping[str, Check], path: Path) -> None:
    """Write the checklist and record it. Raises GateError where a line doesn't hold."""
    table = {name: {"ok": ok, "detail": detail} for name, (ok, detail) in lines.items()}
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", "utf-8")
    shown = {n: {"result": "pass" if ok else "fail", "detail": said} for n, (ok, said) in lines.items()}
    ctx.figure("checks", len(lines))
    ctx.figure("checklist", shown)  # type: ignore[arg-type]
    failed = [f"{name} ({detail})" for name, (ok, detail) in lines.items() if not ok]
    if failed:
        raise GateError(f"the pre-save checklist failed: {'; '.join(failed)}")
