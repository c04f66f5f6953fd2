"""The product converts at least what the best bare call of torch's exporters does, and lets nothing wrong pass."""

from __future__ import annotations

import pytest

from benchmarks.zoo import table
from benchmarks.zoo.__main__ import run_one
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.zoo import ENTRIES

FAST = {
    "hand/bag_of_words": "right",
    "hand/capsules": "right",  # dynamo's file is wrong.
    "hand/graph_net": "right",  # torchscript's file is wrong.
    "hand/packed_lstm": "right",  # dynamo refuses it.
    "hand/patch_fold": "right",  # torchscript refuses it.
    "hand/ranker": "right",  # Its order of equal items is nobody's.
    "hand/spatial_transformer": "both refuse",
}
"""Of every kind of model in these one is converted in seconds → what becomes of it."""


@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=entry.name) for entry in ENTRIES if entry.name in FAST]
)
def test_some_models_of_the_zoo_are_converted_right_or_refused(entry: Entry) -> None:
    result = run_one(entry)
    assert table.verdict(result) == FAST[entry.name], table.line(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=entry.name) for entry in ENTRIES if entry.name not in FAST]
)
def test_the_product_converts_what_a_bare_call_converts_and_nothing_wrong_passes(entry: Entry) -> None:
    result = run_one(entry)
    assert table.verdict(result) in ("right", "both refuse"), table.line(result)
