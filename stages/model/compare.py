"""Compare what a converted model computes with the reference, sample by sample.

Values that are not finite have to be the same at the same place: -inf, +inf and NaN each equal themselves
alone. Figures are of the places where both are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import Context, Field, GateError, StageError, StageParams, closest

if TYPE_CHECKING:
    import numpy as np

    from .bundles import Case

_FIX = "if a difference of this size is acceptable, set `atol` and `rtol`"
_ROUNDING = "is explained by its type's rounding"

Model = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Runs a model: arrays by input name → arrays by output name."""


def taken(arrays: Mapping[str, Any], inputs: Sequence[str]) -> dict[str, Any]:
    """Return the arrays of a model's inputs, of which a single one may be called `x`.

    Raises StageError where one is missing.
    """
    if len(inputs) == 1 and list(arrays) == ["x"]:
        return {inputs[0]: arrays["x"]}
    missing = [name for name in inputs if name not in arrays]
    if missing:
        raise StageError(
            f"the model requires the input {missing[0]!r}, the samples have only {', '.join(arrays)}",
            fix=closest(missing[0], arrays) or "name each array after its input",
        )
    return {name: arrays[name] for name in inputs}


class Tolerances(StageParams):
    """How close to eager a conversion must be; without a number, by the rounding of each output's type."""

    atol: float | None = Field(
        None, ge=0, description="absolute tolerance against eager (default: by rounding)"
    )
    rtol: float | None = Field(None, ge=0, description="relative tolerance against eager")


@dataclass(slots=True)
class Parity:
    """The worst differences over all cases.

    `excess` is max(|a - b| - allowed), `allowed` being atol + rtol * |b|, or where neither is given what
    the case allows: above 0 the tolerance is broken. `limit` is what was allowed there, `allowed` what was
    where the difference is `max_abs`. `cosine` is the smallest cosine similarity of a sample,
    `argmax_agreement` the share of samples whose largest value over the last axis is at the same place.
    `worst_sample` holds the arrays of the sample that breaks the tolerance most, or comes nearest to it:
    `in/NAME`, `expected/NAME` and `actual/NAME`.
    """

    max_abs: float = 0.0
    allowed: float = 0.0
    max_rel: float = 0.0
    cosine: float = 1.0
    argmax_agreement: float = 1.0
    excess: float = float("-inf")
    limit: float = 0.0
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

    def beyond(self, atol: float | None, rtol: float | None, otherwise: str = _ROUNDING) -> str:
        """Say by how much the tolerance is broken where it is broken most, and what allows no more."""
        allowed = f"the {self.limit:.3g} that {otherwise}"
        if atol is not None or rtol is not None:
            allowed = f"atol {atol or 0:g} + rtol {rtol or 0:g} allow"
        return f"up to {self.excess + self.limit:.3g}, more than {allowed}"

    def add(
        self, where: str, expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any],
        allowed: Callable[[np.ndarray[Any, Any]], Any], floor: float, batch: int | None = 0,
    ) -> int | None:  # fmt: skip
        """Take one output of one case into account; return its worst sample if there is none worse.

        `batch` is the axis of the samples, None where the whole is one. `allowed` says how far a value may
        be off; relative differences are of values above `floor`.
        Raises GateError where one is not finite and the other is something else.
        """
        import numpy as np

        a, b = reals(actual), reals(expected)
        finite = _samples_first(both_finite(where, b, a), batch)
        a, b = _samples_first(a, batch), _samples_first(b, batch)
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        difference = np.abs(a - b)
        if difference.size == 0:
            return None
        rows = difference.reshape(len(difference), -1)
        limits = np.broadcast_to(allowed(b), difference.shape)
        most = float(difference.max()), float(limits.reshape(-1)[difference.argmax()])
        self.max_abs, self.allowed = max((self.max_abs, self.allowed), most)
        scale = np.maximum(np.abs(b), np.finfo(np.float32).tiny)
        large = np.abs(b) > floor  # Below it a relative difference is that of rounding to rounding.
        if large.any():
            self.max_rel = max(self.max_rel, float((difference / scale)[large].max()))
        self._directions(a.reshape(rows.shape), b.reshape(rows.shape))
        self._agree(np.where(finite, a, -np.inf), np.where(finite, b, -np.inf))
        over = (difference - limits).reshape(rows.shape)
        if over.max() <= self.excess:
            return None
        self.excess = float(over.max())
        self.limit = float(limits.reshape(-1)[over.argmax()])
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
        count = len(b)
        if b.ndim >= 2 and b.shape[-1] > 1:
            self._agreed += float((a.argmax(-1) == b.argmax(-1)).reshape(count, -1).mean(1).sum())
        else:
            self._agreed += count
        self.samples += count
        self.argmax_agreement = self._agreed / self.samples


def both_finite(
    where: str, expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return where both are finite. Raises GateError for a place where they differ beyond numbers.

    That is NaN or an infinity where the other has anything else.
    """
    import numpy as np

    finite: np.ndarray[Any, Any] = np.isfinite(expected) & np.isfinite(actual)
    same = finite | (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    if not same.all():
        place = tuple(int(i) for i in np.argwhere(~same)[0]) if same.ndim else ()
        raise GateError(f"{where} at {list(place)}: the result is {float(actual[place]):g} where the "
                        f"original is {float(expected[place]):g}")  # fmt: skip
    return finite


def eps_limit(array: np.ndarray[Any, Any], *, eps: float | None = None) -> float:
    """Return 64 units of the type's rounding at the largest finite value; 0 for what isn't rounded.

    Sums in another order round differently, in proportion to the largest term, whatever an output's own
    size is. On 15 nets of all kinds onnxruntime and torch differed by up to 21 such units; 64 is three
    times that. It is the fallback for models that can't run in float64 (see `precision`): there the
    model's own rounding is measured, and the limit follows it.
    """
    import numpy as np

    if array.dtype.kind not in "fc" or not array.size:
        return 0.0
    unit = float(np.finfo(array.dtype).eps) if eps is None else eps
    return 64 * unit * largest(array)


def within(cases: Sequence[Case], share: float) -> list[Case]:
    """Return the cases with what is allowed set: a share of each output's largest value among them."""
    most: dict[str, float] = {}
    for case in cases:
        for name, array in case.outputs.items():
            most[name] = max(most.get(name, 0.0), largest(array))
    return [replace(c, allowed={name: share * most[name] for name in c.outputs}) for c in cases]


def largest(array: np.ndarray[Any, Any]) -> float:
    """Return the largest absolute value among the finite ones, 0 where there is none."""
    import numpy as np

    values = np.abs(reals(array))
    return float(values[np.isfinite(values)].max(initial=0.0))


def compare(
    cases: Iterable[Case], run: Model, *, atol: float | None = None, rtol: float | None = None
) -> Parity:
    """Run a model on every case and return the differences from the reference outputs.

    Allowed is atol + rtol * |b|; without either, what model.prepare found for the output (see
    `precision`), or else 64 units of its type's rounding. Raises GateError where an output is missing
    or has another shape than the reference.
    """
    parity = Parity()
    for case in cases:
        actual = run(case.inputs)
        for name, array in case.outputs.items():
            if name not in actual:
                raise GateError(f"the model has no output {name!r}, only {', '.join(actual)}")
            if actual[name].shape != array.shape:
                raise GateError(
                    f"{case.name}: output {name!r} has the shape {tuple(actual[name].shape)}, "
                    f"the reference has {tuple(array.shape)}"
                )
            limit, floor = _allowed(case, name, atol, rtol)
            place = f"out/{name}"
            worst = parity.add(f"{case.name}, output {name!r}", array, actual[name], limit, floor,
                               case.batch.get(place, 0))  # fmt: skip
            if worst is not None:
                parity.worst_sample = {
                    **{f"in/{n}": case.sample(f"in/{n}", a, worst) for n, a in case.inputs.items()},
                    f"expected/{name}": case.sample(place, array, worst),
                    f"actual/{name}": case.sample(place, actual[name], worst),
                }
    return parity


def _allowed(
    case: Case, name: str, atol: float | None, rtol: float | None
) -> tuple[Callable[[np.ndarray[Any, Any]], Any], float]:
    """Return how far each value may be off, and below which size a value is as good as nothing."""
    if atol is None and rtol is None:
        limit = case.allowed.get(name, eps_limit(case.outputs[name]))
        return lambda values: limit, limit
    return lambda values: (atol or 0.0) + (rtol or 0.0) * abs(values), atol or 0.0


def reals(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the values as float64; of complex ones the parts, on one more axis."""
    import numpy as np

    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    return array.astype(np.float64)


def _samples_first(array: np.ndarray[Any, Any], batch: int | None) -> np.ndarray[Any, Any]:
    """Return an array with the axis of its samples first: one of length one where it has none."""
    import numpy as np

    return array[None] if batch is None or batch >= array.ndim else np.moveaxis(array, batch, 0)


def gate(
    ctx: Context, parity: Parity, *, atol: float | None = None, rtol: float | None = None, fix: str = ""
) -> None:
    """Record the figures, and raise GateError where the tolerance is broken."""
    for name, value in parity.figures().items():
        ctx.figure(name, value)
    ctx.figure("allowed", parity.allowed)
    if parity.excess > 0:
        said = parity.beyond(atol, rtol)
        raise GateError(
            f"the result differs from the original by {said}; worst at {parity.worst}", fix=fix or _FIX
        )
