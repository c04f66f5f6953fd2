"""Histograms of a model's tensors, filled sample by sample, and the ranges of values that they give.

They take the place of onnxruntime's: those want all samples of a chunk in one shape, grow without a limit
where a sample has an outlier, and search for a threshold in Python loops, seconds for a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LEVELS", "Histogram", "Histograms"]

LEVELS = 256
"""Values of an eight-bit number."""
_CANDIDATES = 256
"""Thresholds that are tried for a tensor: each range differs from the next by 0.4 % of the whole."""
_EMPTY = 1e-4
"""Values that a group without any counts as, so that a divergence is finite."""


class Histogram:
    """Counts of a tensor's values in `2 * side` bins from -reach to reach, an even number on each side of 0.

    `low` and `high` are exact. Values of exactly 0, which every quantization holds, are counted in `zeros`
    alone.
    """

    def __init__(self, side: int) -> None:
        import numpy as np

        self.side = side + side % 2
        self.counts = np.zeros(2 * self.side, np.int64)
        self.reach, self.low, self.high, self.zeros = 0.0, math.inf, -math.inf, 0
        self.dtype = np.dtype(np.float32)

    def add(self, values: np.ndarray[Any, Any]) -> None:
        """Count the values of an array of any shape that are finite."""
        import numpy as np

        self.dtype = values.dtype
        flat = values.ravel()
        finite = np.isfinite(flat)
        flat = (flat if finite.all() else flat[finite]).astype(np.float32, copy=False)
        if not flat.size:
            return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        self._grow(max(-self.low, self.high))
        if not self.reach:
            self.zeros += flat.size
            return
        index = ((flat / np.float64(self.reach) + 1) * self.side).astype(np.int64)
        counts = np.bincount(np.minimum(index, 2 * self.side - 1), minlength=2 * self.side)
        zeros = flat.size - np.count_nonzero(flat)
        counts[self.side] -= zeros
        self.zeros += int(zeros)
        self.counts += counts

    def _grow(self, reach: float) -> None:
        """Let the bins reach so far, by joining pairs of them."""
        import numpy as np

        if not self.reach:
            self.reach = reach
        while self.reach < reach:
            self.reach *= 2
            half = self.side // 2
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(1), half)

    def range(self, method: Literal["entropy", "percentile"], percentile: float) -> tuple[Any, Any]:
        """Return the range in the tensor's own type; (0, 0) where it never held a finite value."""
        import numpy as np

        found = 0.0, 0.0
        if not math.isinf(self.low):
            found = self._entropy() if method == "entropy" else self._percentile(percentile)
        return np.array(found[0], self.dtype), np.array(found[1], self.dtype)

    def _percentile(self, percentile: float) -> tuple[float, float]:
        """Return the range that so many percent of the values lie in, as many of the rest on either side."""
        import numpy as np

        counts = self.counts.copy()
        counts[self.side] += self.zeros
        share = np.cumsum(counts) / counts.sum()
        cut = (100 - percentile) / 200
        first = int(np.searchsorted(share, cut, "right"))
        last = int(np.searchsorted(share, 1 - cut))
        return self._clipped(first, min(last, 2 * self.side - 1) + 1)

    def _entropy(self) -> tuple[float, float]:
        """Return the range, cut at the same distance from 0, whose values diverge least when quantized.

        The Kullback-Leibler divergence between the values, with what is cut off in the outermost bins, and
        their spread over 256 levels: S. Migacz, 8-bit Inference with TensorRT, GTC 2017.
        """
        import numpy as np

        filled = np.flatnonzero(self.counts)
        if not filled.size:
            return self.low, self.high
        first, last = int(filled[0]), int(filled[-1]) + 1
        farthest = max(self.side - first, last - self.side)
        cuts = np.unique(np.linspace(farthest, 1, _CANDIDATES).astype(np.int64))[::-1]
        starts, ends = np.maximum(first, self.side - cuts), np.minimum(last, self.side + cuts)
        fine = ends - starts >= LEVELS
        if not fine.any():
            return self.low, self.high
        best = int(np.argmin(_divergence(self.counts, starts[fine], ends[fine])))
        return self._clipped(int(starts[best]), int(ends[best]))

    def _clipped(self, start: int, end: int) -> tuple[float, float]:
        """Return the range of the bins from `start` to before `end`, within the values that there were."""
        width = self.reach / self.side
        low = start * width - self.reach if self.counts[:start].any() else self.low
        high = end * width - self.reach if self.counts[end:].any() else self.high
        return max(low, self.low), min(high, self.high)


def _divergence(
    counts: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the divergence of each range of bins, times the number of values, less what all share."""
    import numpy as np

    total = counts.sum()
    below = np.concatenate([[0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    spread = np.concatenate([[0.0], np.cumsum(_xlogx(counts))])
    edges = starts[:, None] + np.arange(LEVELS + 1) * (ends - starts)[:, None] // LEVELS
    inside, bins = np.diff(below[edges], axis=1).astype(float), np.diff(filled[edges], axis=1)
    left, right = below[starts], total - below[ends]
    values = inside.copy()
    values[:, 0] += left
    values[:, -1] += right
    own = spread[ends] - spread[starts]
    for group, bin_, outside in ((0, starts, left), (-1, ends - 1, right)):
        own += _xlogx(counts[bin_] + outside) - _xlogx(counts[bin_])
        bins[:, group] += (counts[bin_] == 0) & (outside > 0)
    level = np.maximum(inside, _EMPTY) / np.maximum(bins, 1)
    divergence: np.ndarray[Any, Any] = own - (values * np.log(level)).sum(1) + total * np.log(inside.sum(1))
    return divergence


def _xlogx(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    product: np.ndarray[Any, Any] = counts * np.log(np.maximum(counts, 1))
    return product


class Histograms:
    """A histogram for each tensor; fills what onnxruntime's calibrators call their collector."""

    def __init__(self, side: int) -> None:
        self._side = side
        self.tensors: dict[str, Histogram] = {}

    def collect(self, arrays: Mapping[str, Iterable[np.ndarray[Any, Any]]]) -> None:
        """Count what the tensors of these names held for some samples, whose sizes may differ."""
        for name, values in arrays.items():
            histogram = self.tensors.setdefault(name, Histogram(self._side))
            for array in values:
                histogram.add(array)
