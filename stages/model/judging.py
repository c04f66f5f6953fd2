"""Judge a lossy model on inputs that it was not made with, and say why it fails.

Rounding to int8 moves every output a little: a limit of each difference says nothing. What must hold is
the direction of the outputs (cosine), that they still follow the inputs, and where the largest one is.
Measured over eleven kinds of small nets: sound int8 has a cosine of 0.99 and more, broken ones of 0.95
and less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import Context, Field, GateError, StageParams

from .bundles import Case
from .compare import Model, reals

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_TIE = 0.1
"""Two outputs nearer than this share of the usual spread are a tie, which rounding may turn."""

_ROWS = 100_000


class Floors(StageParams):
    """How close a lossy model must be; a lower number allows more loss."""

    min_cosine: float = Field(
        0.98, ge=-1, le=1, description="smallest cosine of each output with the original's, on fresh inputs"
    )
    min_agreement: float = Field(
        0.9,
        ge=0,
        le=1,
        description="smallest share of samples with the largest output at the same position, ignoring ties",
    )


@dataclass(slots=True)
class Score:
    """How one output agrees over many samples. Sums are over all values that are finite in both."""

    dot: float = 0.0
    squares: float = 0.0
    original: float = 0.0
    max_abs: float = 0.0
    mismatch: str = ""
    rows: int = 0
    agreed: int = 0
    gaps: list[Array] = field(default_factory=list)
    spreads: list[Array] = field(default_factory=list)

    def add(self, expected: Array, actual: Array) -> None:
        """Take an output of one case into account."""
        import numpy as np

        if expected.shape != actual.shape:
            self.mismatch = f"has the shape {actual.shape}, the original {expected.shape}"
            return
        if expected.dtype.kind not in "fcV":
            self.rows += expected.size
            self.agreed += int((expected == actual).sum())
            return
        a, b = reals(actual), reals(expected)
        finite = np.isfinite(b)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
            self.mismatch = "is infinite or not a number where the original's is not"
            return
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        self.dot += float((a * b).sum())
        self.squares += float((a * a).sum())
        self.original += float((b * b).sum())
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max(initial=0)))
        self._choices(a, b, finite)

    def _choices(self, a: Array, b: Array, finite: Array) -> None:
        """Note how far below the original's largest value the one lies that is now chosen."""
        import numpy as np

        if b.ndim < 2 or not b.size:
            return
        axis = 1 if b.ndim >= 4 else -1  # The classes of a map of pixels are its channels.
        lowest = np.where(finite, b, -np.inf)
        chosen = np.where(finite, a, -np.inf).argmax(axis)
        top = lowest.max(axis)
        got = np.take_along_axis(lowest, np.expand_dims(chosen, axis), axis).squeeze(axis)
        usable = np.isfinite(top)
        if b.shape[axis] < 2 or sum(map(len, self.gaps)) > _ROWS:
            return
        self.gaps.append((top - got)[usable].ravel())
        self.spreads.append((top - np.where(finite, b, np.inf).min(axis))[usable].ravel())

    @property
    def cosine(self) -> float:
        """Return the cosine of the outputs of all samples as one vector."""
        if not self.original:
            return 1.0
        norm = (self.squares * self.original) ** 0.5
        return self.dot / norm if norm else 0.0

    @property
    def exact(self) -> float:
        """Return the share of samples whose largest value is at the same place."""
        import numpy as np

        gaps = np.concatenate(self.gaps) if self.gaps else np.zeros(0)
        count = self.rows + len(gaps)
        return (self.agreed + int((gaps <= 0).sum())) / count if count else 1.0

    @property
    def agreement(self) -> float:
        """Return the same share, where another place counts only if the original is far from a tie."""
        import numpy as np

        gaps = np.concatenate(self.gaps) if self.gaps else np.zeros(0)
        if self.rows or not len(gaps):
            return self.agreed / self.rows if self.rows else 1.0
        usual = float(np.sqrt((np.concatenate(self.spreads) ** 2).mean()))
        return float((gaps <= _TIE * usual).mean())


REFERENCE, FRESH = "the reference cases", "fresh inputs"
"""What a lossy model is judged on."""

Causes = Callable[[], tuple[str, str]]
"""Says what is the matter, and the fix."""


def answered(original: Model, inputs: Iterable[Mapping[str, Any]]) -> Iterator[Case]:
    """Yield what the original answers to inputs, as cases."""
    for index, arrays in enumerate(inputs):
        yield Case(f"fresh{index}", arrays, original(arrays))


def judge(
    ctx: Context, floors: Floors, candidate: Model, judged: Mapping[str, Iterable[Case]], causes: Causes
) -> None:
    """Run a model on cases (what they are → inputs and the original's outputs), record it, and refuse.

    Figures: `cosine` (the smallest of any output), `argmax_agreement` (all samples), `agreement`
    (without ties), `max_abs` and `samples`. Raises GateError below a floor, with cause and fix.
    """
    scores: dict[tuple[str, str], Score] = {}
    count = 0
    for kind, cases in judged.items():
        for case in cases:
            count += 1
            actual = candidate(case.inputs)
            for name, array in case.outputs.items():
                if name not in actual:
                    raise GateError(f"the model has no output {name!r}, only {', '.join(actual)}")
                scores.setdefault((kind, name), Score()).add(array, actual[name])
    ctx.figure("cosine", min((s.cosine for s in scores.values()), default=1.0))
    ctx.figure("argmax_agreement", min((s.exact for s in scores.values()), default=1.0))
    ctx.figure("agreement", min((s.agreement for s in scores.values()), default=1.0))
    ctx.figure("max_abs", max((s.max_abs for s in scores.values()), default=0.0))
    ctx.figure("samples", count)
    refusals = [said for (kind, name), s in scores.items() if (said := _refusal(floors, kind, name, s))]
    if refusals:
        cause, fix = causes()
        raise GateError(
            f"the result deviates too much from the original: {refusals[0]}{cause and '; ' + cause}", fix=fix
        )


def _refusal(floors: Floors, kind: str, name: str, score: Score) -> str:
    if score.mismatch:
        return f"on {kind}, output {name!r} {score.mismatch}"
    if score.cosine < floors.min_cosine:
        return (f"on {kind}, output {name!r} has a cosine of {score.cosine:.4f} with the original's, "
                f"below {floors.min_cosine:g}")  # fmt: skip
    if score.agreement < floors.min_agreement:
        return (f"on {kind}, the largest value of output {name!r} is at the same position in "
                f"{score.agreement:.1%} of the samples, less than {floors.min_agreement:.1%}")  # fmt: skip
    return ""
