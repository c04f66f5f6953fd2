"""Ranges of values: by histogram as by sorting all values, whatever order and sizes they come in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.model.histograms import LEVELS, Histogram

SIDE = 2048


def filled(*arrays: np.ndarray[Any, Any], side: int = SIDE) -> Histogram:
    histogram = Histogram(side)
    for array in arrays:
        histogram.add(array)
    return histogram


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=20), min_size=1, max_size=6))
def test_no_value_is_lost_as_the_range_grows(samples: list[list[float]]) -> None:
    histogram = filled(*(np.array(values, np.float32) for values in samples))
    values = [value for sample in samples for value in sample]
    assert histogram.counts.sum() + histogram.zeros == len(values)
    if values:
        assert (histogram.low, histogram.high) == (min(values), max(values))
        assert histogram.range("percentile", 100.0) == (min(values), max(values))
    assert histogram.counts.size == 2 * SIDE


@given(st.integers(0, 2**32 - 1), st.floats(90, 99.9), st.sampled_from([0.0, 3.0]))
def test_a_percentile_is_that_of_the_sorted_values(seed: int, percentile: float, offset: float) -> None:
    values = np.random.default_rng(seed).standard_normal((50, 80)).astype(np.float32) + np.float32(offset)
    low, high = filled(*values).range("percentile", percentile)
    width, cut = 2 * np.abs(values).max() / SIDE, (100 - percentile) / 200
    assert np.mean(values < low) <= cut <= np.mean(values < low + width)
    assert np.mean(values > high) <= cut + 1e-9 <= np.mean(values > high - width) + 1e-9


def divergence(histogram: Histogram, reach: int) -> float:
    """Return the divergence of one range, term by term."""
    counts, side = histogram.counts, histogram.side
    used = np.flatnonzero(counts)
    start, end = max(used[0], side - reach), min(used[-1] + 1, side + reach)
    p = counts[start:end].astype(float)
    p[0] += counts[:start].sum()
    p[-1] += counts[end:].sum()
    q = np.zeros_like(p)
    edges = np.arange(LEVELS + 1) * (end - start) // LEVELS
    for a, b in itertools.pairwise(edges):
        some = p[a:b] > 0
        if some.any():
            q[a:b][some] = max(counts[start + a : start + b].sum(), 1e-4) / some.sum()
    p, q = p[p > 0] / p.sum(), q[p > 0] / counts[start:end].sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("shape", ["laplace", "relu", "outlier", "uniform", "two sides"])
def test_entropy_takes_the_range_of_the_least_divergence(shape: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "laplace": rng.laplace(size=20_000),
        "relu": np.maximum(rng.standard_normal(20_000), 0),
        "outlier": np.append(rng.standard_normal(20_000), [80.0]),
        "uniform": rng.uniform(-1, 1, 20_000),
        "two sides": rng.standard_normal(20_000) * np.where(rng.random(20_000) < 0.5, 0.2, 1.0) + 0.3,
    }[shape].astype(np.float32)
    histogram = filled(values)
    low, high = histogram.range("entropy", 0.0)
    width = histogram.reach / histogram.side
    taken = round(max(-low, high) / width + 0.499)
    farthest = round(histogram.reach / width)
    found = divergence(histogram, taken)
    assert found <= 1.01 * min(divergence(histogram, reach) for reach in range(LEVELS, farthest + 1, 8))


def test_one_outlier_among_many_values_is_cut_off_and_zeros_dont_matter() -> None:
    values = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    values[0] = 40
    for zeros in (0, 1_000_000):
        low, high = filled(values, np.zeros(zeros, np.float32)).range("entropy", 0.0)
        assert -6 < low < -2
        assert 2 < high < 6


@pytest.mark.parametrize("method", ["entropy", "percentile"])
@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], (0, 0)),
        ([0, 0], (0, 0)),
        ([np.nan, np.inf], (0, 0)),
        ([5, 5, 5], (5, 5)),
        ([-np.inf, 1, 2], (1, 2)),
        ([1e-30, 1e30], (0, 1e30)),
    ],
    ids=str,
)
def test_values_without_a_distribution_have_a_range_too(
    method: Any, values: list[float], wanted: tuple[float, float]
) -> None:
    found = filled(np.array(values, np.float32)).range(method, 100.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-20)


def test_a_range_has_its_tensors_type() -> None:
    assert [v.dtype.name for v in filled(np.ones(3, np.float16)).range("entropy", 0.0)] == ["float16"] * 2
