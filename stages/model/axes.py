"""Dynamic axes: which sizes each may have, which one is the batch, and what an output's follow.

A *label* names an axis of any size; axes of one label have one size. The batch is the label called so,
wherever it stands in an input; where none is, the one on axis 0 of the first input, if what the model
computes for a sample doesn't depend on the others (model.prepare tries it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from deploy_runner.sdk import StageError

from ...server.labels import names_samples

_FACTORS = (1, 2, 4, 8, 16, 32, 3)
"""By what an output's size is sought to be a label's, times or divided."""
SOUND = 4000
"""From so many values on, half a second at 8 kHz, a length is taken for that of a sound."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The sizes that a label may have: multiples of `multiple_of` from `min` to `max`."""

    label: str
    multiple_of: int = 1
    min: int = 1
    max: int | None = None

    def allows(self, size: int) -> bool:
        """Say whether the axis may have this size."""
        return size >= self.min and size <= (self.max or size) and size % self.multiple_of == 0

    def nearest(self, size: int) -> int:
        """Return the smallest size from `size` on that is allowed, else the largest. Raises StageError."""
        upward = range(max(size, self.min), max(size, self.min) + self.multiple_of)
        found = next((n for n in upward if self.allows(n)), None)
        if found is None:
            found = next((n for n in range(self.max or 0, self.min - 1, -1) if self.allows(n)), None)
        if found is None:
            raise StageError(
                f"dynamic: no size satisfies {self}",
                fix="choose other values of `multiple_of`, `min` and `max`",
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the axis as JSON."""
        return {"label": self.label, "multiple_of": self.multiple_of, "min": self.min, "max": self.max}

    def __str__(self) -> str:
        multiple = f"a multiple of {self.multiple_of} " if self.multiple_of > 1 else ""
        return f"{multiple}from {self.min} to {self.max or 'any size'}"


def merged(label: str, given: Iterable[Axis]) -> Axis:
    """Return what all that was said of one label leaves. Raises StageError for a contradiction."""
    axis = Axis(label)
    for other in given:
        if axis.multiple_of != 1 and other.multiple_of not in (1, axis.multiple_of):
            raise StageError(f"dynamic: {label!r} is declared as a multiple of {axis.multiple_of} and of "
                             f"{other.multiple_of}", fix="declare it once")  # fmt: skip
        most = min((n for n in (axis.max, other.max) if n is not None), default=None)
        axis = Axis(label, max(axis.multiple_of, other.multiple_of), max(axis.min, other.min), most)
    axis.nearest(axis.min)
    return axis


def batch_label(dynamic: Sequence[Mapping[int, str]]) -> tuple[str | None, bool]:
    """Return the label of the batch among the inputs' axes, and whether it is called so.

    Else it is what stands on axis 0 of the first input, to be tried; None where nothing does.
    """
    labels = [label for axes in dynamic for _, label in sorted(axes.items())]
    named = [label for label in labels if names_samples(label)]
    if named:
        return min(named, key=lambda label: "batch" not in label.lower()), True
    return (dynamic[0].get(0) if dynamic else None), False


def axis_of(dynamic: Mapping[int, str], batch: str | None) -> int | None:
    """Return where the batch stands, None where it doesn't or stands twice."""
    found = [axis for axis, label in dynamic.items() if label == batch]
    return found[0] if len(found) == 1 else None


def rows(array: Any, axis: int | None, part: slice) -> Any:
    """Return the samples `part` of an array whose batch is `axis`; the whole array where it has none."""
    if axis is None or axis >= array.ndim:
        return array
    return array[(slice(None),) * axis + (part,)]


def without(shape: Sequence[Any], axis: int) -> tuple[Any, ...]:
    """Return a shape without one of its axes."""
    return (*shape[:axis], *shape[axis + 1 :])


def candidates(axis: Axis, first: int, *, batch: bool) -> Iterator[int]:
    """Yield the sizes to try beside the first, the most telling ones first.

    A batch of one, since exporters take one for a constant; a length that shares no divisor with the first,
    and one that is half as long again, which changes what large strides make of it, too (a sound is made
    shorter first); then, for a model that wants multiples of something, steps that double, and at last
    smaller sizes.
    """
    if batch:
        steps = [1 - first, 5 - first, 1, 2, 3, 4, 6, -1, -2]
    elif axis.multiple_of > 1:
        steps = [axis.multiple_of * n for n in (1, 2, 3, -1, -2, 4, 8)]
    else:
        powers = [n for n in (1 << i for i in range(11)) if n <= first]
        far = [-(first // 4) - 3, first // 4 + 3] if first >= SOUND else []
        steps = [*far, 3, max(6, first // 2), 6, *powers, first, 2 * first, -3, *(-n for n in powers)]
    ends = [axis.min, *([axis.max] if axis.max else [])]
    seen = {first}
    for size in (*(first + step for step in steps), *(axis.nearest(n) for n in ends)):
        if size not in seen and size >= 1 and axis.allows(size):
            seen.add(size)
            yield size


def learned(axis: Axis, first: int, ran: Sequence[int], refused: Sequence[int]) -> Axis:
    """Return the axis with what the refusals say of it: it needs multiples, or has a largest size."""
    if not refused or not ran:
        return axis
    if axis.max is None and max(ran) < first < max(refused):
        axis = replace(axis, max=first)
    step = min(abs(size - first) for size in ran)
    halves = [first + sign * step // 2 for sign in (1, -1) if first + sign * step // 2 in refused]
    if axis.multiple_of == 1 and step > 1 and step & (step - 1) == 0 and first % step == 0 and halves:
        axis = replace(axis, multiple_of=step)
    return axis


def follow(sizes: Sequence[int], labels: Mapping[str, Sequence[int]]) -> str | None:
    """Return what an output's size follows over the cases, e.g. `length`, `2*height` or `(length+1)//2`.

    None where it is always the same, or follows nothing that is tried: labels, times or divided by a small
    number and shifted, and products of two.
    """
    varied = {label: given for label, given in labels.items() if len(set(given)) > 1}
    for label, given in varied.items():
        if list(given) == list(sizes):
            return label
    for factor in _FACTORS:
        for label, given in varied.items():
            if text := _multiple(sizes, label, given, factor) or _fraction(sizes, label, given, factor):
                return text
    for (a, one), (b, other) in combinations(varied.items(), 2):
        if [m * n for m, n in zip(one, other, strict=True)] == list(sizes):
            return f"{a}*{b}"
    return None


def _multiple(sizes: Sequence[int], label: str, given: Sequence[int], factor: int) -> str | None:
    rest = {size - factor * n for size, n in zip(sizes, given, strict=True)}
    if len(rest) != 1:
        return None
    shift = rest.pop()
    return (label if factor == 1 else f"{factor}*{label}") + (f"{shift:+d}" if shift else "")


def _fraction(sizes: Sequence[int], label: str, given: Sequence[int], factor: int) -> str | None:
    """Find a shift with which size = (label + shift) // factor in every case."""
    low = max(size * factor - n for size, n in zip(sizes, given, strict=True))
    high = min(size * factor - n for size, n in zip(sizes, given, strict=True)) + factor - 1
    if factor == 1 or low > high:
        return None
    shift = next((n for n in (0, factor - 1) if low <= n <= high), low)
    return f"({label}{shift:+d})//{factor}" if shift else f"{label}//{factor}"
