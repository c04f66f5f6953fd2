"""Compare what a converted model computes with the reference, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import Context, GateError, StageError

if TYPE_CHECKING:
    import numpy as np

    from ._bundle import Case

Model = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Runs a model: arrays by input name → arrays by output name."""


@dataclass(slots=True)
class Parity:
    """The worst differences over all cases.

    `excess` is max(|a - b| - (atol + rtol * |b|)): above 0 the tolerance is broken. `cosine` is
    the smallest cosine similarity of a sample, `argmax_agreement` the share of samples whose
    largest value over the last axis is at the same place. `worst_sample` holds the arrays of the
    sample that breaks the tolerance most, or comes nearest to it: `in/NAME`, `expected/NAME` and
    `actual/NAME`.
    """

    max_abs: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    argmax_agreement: float = 1.0
    excess: float = float("-inf")
    worst: str = ""
    worst_sample: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 0
    _agreed: float = 0.0

    def figures(self) -> dict[str, float | int | str]:
        """Return the figures as they go into the record."""
        return {
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "cosine": self.cosine,
            "argmax_agreement": self.argmax_agreement,
            "samples": self.samples,
        }

    def add(
        self, where: str, expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any],
        atol: float, rtol: float,
    ) -> int | None:  # fmt: skip
        """Take one output of one case into account; return its worst sample if there is none worse."""
        import numpy as np

        a, b = _reals(actual), _reals(expected)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            raise GateError(f"{where}: one of the models gives values that are not finite")
        difference = np.abs(a - b)
        if difference.size == 0:
            return None
        rows = difference.reshape(len(difference), -1) if difference.ndim else difference.reshape(1, 1)
        self.max_abs = max(self.max_abs, float(difference.max()))
        scale = np.maximum(np.abs(b), np.finfo(np.float32).tiny)
        large = np.abs(b) > atol
        if large.any():
            self.max_rel = max(self.max_rel, float((difference / scale)[large].max()))
        self._directions(a.reshape(rows.shape), b.reshape(rows.shape))
        self._agree(a, b)
        over = (difference - (atol + rtol * np.abs(b))).reshape(rows.shape)
        if over.max() <= self.excess:
            return None
        self.excess = float(over.max())
        sample = int(over.max(axis=1).argmax())
        self.worst = f"{where}, sample {sample}"
        return sample

    def _directions(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
        import numpy as np

        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        usable = norms > 0
        if usable.any():
            cosines = (a * b).sum(axis=1)[usable] / norms[usable]
            self.cosine = min(self.cosine, float(cosines.min()))

    def _agree(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
        count = len(b) if b.ndim else 1
        if b.ndim >= 2 and b.shape[-1] > 1:
            self._agreed += float((a.argmax(-1) == b.argmax(-1)).reshape(count, -1).mean(1).sum())
        else:
            self._agreed += count
        self.samples += count
        self.argmax_agreement = self._agreed / self.samples


def compare(cases: Iterable[Case], run: Model, *, atol: float, rtol: float) -> Parity:
    """Run a model on every case and return the differences from the reference outputs.

    Raises GateError where an output is missing or has another shape than the reference.
    """
    parity = Parity()
    for case in cases:
        actual = run(case.inputs)
        for name, array in case.outputs.items():
            if name not in actual:
                raise GateError(f"the model has no output {name!r}, it has {', '.join(actual)}")
            if actual[name].shape != array.shape:
                raise GateError(
                    f"{case.name}: output {name!r} has the shape {tuple(actual[name].shape)}, "
                    f"the reference has {tuple(array.shape)}"
                )
            worst = parity.add(f"{case.name}, output {name!r}", array, actual[name], atol, rtol)
            if worst is not None:
                parity.worst_sample = {f"in/{n}": _row(a, worst) for n, a in case.inputs.items()} | {
                    f"expected/{name}": _row(array, worst), f"actual/{name}": _row(actual[name], worst)
                }  # fmt: skip
    return parity


def _reals(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the values as float64; of complex ones the parts, on one more axis."""
    import numpy as np

    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64)


def _row(array: np.ndarray[Any, Any], index: int) -> np.ndarray[Any, Any]:
    """Return one sample, as a batch of one; an array without that many rows whole."""
    return array[index : index + 1].copy() if array.ndim and len(array) > index else array


def gate(ctx: Context, parity: Parity, *, atol: float, rtol: float, fix: str = "") -> None:
    """Record the figures, and raise GateError where the tolerance is broken."""
    for name, value in parity.figures().items():
        ctx.figure(name, value)
    if parity.excess > 0:
        raise GateError(
            f"the result differs from the original by up to {parity.max_abs:.3g}, more than "
            f"atol {atol:g} + rtol {rtol:g} allow; worst at {parity.worst}",
            fix=fix,
        )


def run_or_refuse(run: Model, case: Case) -> Mapping[str, Any]:
    """Run one case, and name it where the model can't take it."""
    try:
        return run(case.inputs)
    except Exception as error:
        shapes = {name: tuple(array.shape) for name, array in case.inputs.items()}
        said = str(error).strip().partition("\n")[0]
        raise StageError(f"the result can't run inputs of shape {shapes}: {said}") from error
