"""The product converts at least what the best bare call of torch's exporters does, and lets nothing wrong pass."""

from __future__ import annotations

import pytest

from benchmarks.zoo import table
from benchmarks.zoo.__main__ import run
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.zoo import ENTRIES

FAST = ("hand/capsules", "hand/packed_lstm")
"""Models that take seconds: one exporter's file is wrong, or it refuses."""


def test_models_that_a_bare_exporter_fails_are_converted_right() -> None:
    for result in run([entry for entry in ENTRIES if entry.name in FAST]):
        assert table.verdict(result) == "right", table.line(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=entry.name) for entry in ENTRIES if entry.name not in FAST]
)
def test_the_product_converts_what_a_bare_call_converts_and_nothing_wrong_passes(entry: Entry) -> None:
    (result,) = run([entry])
    assert table.verdict(result) in ("right", "both refuse"), table.line(result)
