"""Recognise masks, lengths and positions by their names, and make values that a model understands.

A mask is padded on the right and leaves no row empty, lengths fall and stay within their axis, positions
count: a model answers to random numbers in their place with nonsense, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .axes import without

if TYPE_CHECKING:
    import numpy as np

    from .bundles import Port

__all__ = ["Fill", "called", "filled", "longest_sample"]

Fill = Literal["random", "mask", "padding", "gaps", "lengths", "positions"]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_LENGTHS = ("len", "lens", "length", "lengths")
_COUNTS = ("size", "sizes", "frames")


def called(name: str, dtype: str, rank: int) -> Fill:
    """Return what an input holds by its name, type and number of axes; `random` where that tells nothing."""
    words = [word.lower() for word in _WORD.findall(name)]
    whole = "int" in dtype
    if any(word.endswith(("mask", "masks")) for word in words):
        return "padding" if any(word.startswith("pad") for word in words) else "mask"
    if whole and rank and ({"position", "positions"} & set(words) or {"pos", "ids"} <= set(words)):
        return "positions"
    ends = _LENGTHS if not whole or rank > 1 else (*_LENGTHS, *_COUNTS)
    if rank <= 1 and words and words[-1].endswith(ends):
        return "lengths"
    return "lengths" if whole and set(words) & set(_LENGTHS) else "random"


def longest_sample(
    port: Port, others: Iterable[Port], shape_of: Callable[[Port], Sequence[int]], batch: str | None
) -> int:
    """Return how long a sample may be by the other inputs: the largest of what `port`, lengths, may hold.

    Of each it is the first axis that may vary beside that of the samples, else the first one beside it.
    Masks tell it only where nothing else does.
    """
    found: dict[bool, list[int]] = {True: [], False: []}
    for other in others:
        axes = [a for a in range(len(other.shape)) if a != other.batch and other.dynamic.get(a) != batch]
        axis = next((a for a in axes if a in other.dynamic), axes[0] if axes else None)
        if other is not port and axis is not None:
            fill = called(other.name, other.dtype, len(other.shape))
            found[fill in ("mask", "padding")].append(shape_of(other)[axis])
    return min(found[False] or found[True], default=1)


def _falling(rows: int, longest: int) -> list[int]:
    """Return the lengths of samples, the longest first, in falling order: packed sequences need it."""
    step = max(1, longest // (rows + 1))
    return [max(1, longest - row * step) for row in range(rows)]


def filled(
    fill: Fill, shape: Sequence[int], dtype: str, *, batch: int | None, longest: int, index: int = 0
) -> np.ndarray[Any, Any]:
    """Return an array that holds what `fill` says, which isn't `random`.

    `batch` is the axis of the samples, `longest` the largest value of lengths; floats are shares of it. At
    another `index` positions begin elsewhere, else a model that counts by itself would not be told.
    """
    import numpy as np

    if fill == "lengths":
        lengths = np.resize(_falling(shape[0] if shape else 1, longest), shape)
        return np.asarray(lengths / longest if dtype.startswith("float") else lengths, dtype)
    if fill == "positions":
        return np.broadcast_to(np.roll(np.arange(shape[-1]), index), shape).astype(dtype)
    if not shape:
        return np.ones((), dtype)
    if dtype == "bool" and fill == "mask" and len(shape) > 1 and shape[-1] == shape[-2] > 1:
        fill = "padding"  # Of queries and keys; torch's own attention hides what is True.
    rows = batch if batch is not None and 0 < batch < len(shape) - 1 else 0
    turned = (shape[rows], *without(shape, rows))
    made = _mask(turned, fill, either=fill == "padding" or dtype == "bool")
    return np.moveaxis(np.broadcast_to(made, turned), 0, rows).astype(dtype)


def _mask(shape: Sequence[int], fill: Fill, *, either: bool) -> Any:
    """Return a mask of the last axis, whose rows are on the first; it broadcasts to the shape.

    With `either` no row has one value only: whichever of the two hides, something is left.
    """
    import numpy as np

    size, rows = shape[-1], shape[0] if len(shape) > 1 else 2
    lengths = np.array(_falling(rows, size))
    if either:
        lengths = np.clip(lengths, 1, max(1, size - 1))
    places = np.arange(size)
    kept = places < lengths[:, None]
    if fill == "padding":
        kept = ~kept
    if fill == "gaps":
        kept = (places == 0) | (places > size - lengths[:, None])
    return kept.reshape(rows, *(1,) * (len(shape) - 2), size) if len(shape) > 1 else kept[1]
