"""What the zoo says of its results, and that it holds what it promises."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo import table
from benchmarks.zoo.__main__ import chosen
from benchmarks.zoo.entries import CASES, Entry, Given, made
from benchmarks.zoo.zoo import ENTRIES

RIGHT: dict[str, Any] = {
    "cases": dict.fromkeys(CASES, "right"),
    "export_seconds": 2.0,
    "build_seconds": 0.5,
    "peak_bytes": 100,
}
EXAMPLE_ONLY: dict[str, Any] = {**RIGHT, "cases": {**RIGHT["cases"], "other sizes": "wrong: y is off by 3"}}
REFUSED: dict[str, Any] = {"failed": "TypeError: no", "export_seconds": 1.0, "peak_bytes": 80}


def product(cases: dict[str, str] | None, **figures: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"state": "ran", "error": None, "cpu_seconds": 5.0, "peak_bytes": 150,
            "figures": {"exporter": "dynamo", **figures}}  # fmt: skip
    if cases is None:
        made = {"state": "failed", "error": "no | <exporter> can", "figures": {}}
    return {"stages": {"onnx": made}, **({"cases": cases} if cases else {})}


def result(dynamo: Any, torchscript: Any, product: Any) -> dict[str, Any]:
    return {"name": "hand/x", "family": "handwritten", "parameters": 7, "seconds": 3.0, "product": product,
            "bare": {"dynamo": dynamo, "torchscript": torchscript}}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param(result(RIGHT, REFUSED, product(RIGHT["cases"])), "right", id="right"),
        pytest.param(result(RIGHT, RIGHT, product(EXAMPLE_ONLY["cases"])), "wrong", id="wrong"),
        pytest.param(result(REFUSED, RIGHT, product(None)), "loses", id="a bare call is better"),
        pytest.param(result(EXAMPLE_ONLY, REFUSED, product(None)), "both refuse", id="bare is right once"),
        pytest.param({"name": "x", "failed": "no"}, "failed", id="failed"),
    ],
)
def test_a_model_is_right_only_if_it_is_at_every_size(given: dict[str, Any], said: str) -> None:
    assert table.verdict(given) == said
    assert said in table.line(given)


def test_costs_are_of_all_exporters_that_were_tried() -> None:
    once = result(RIGHT, REFUSED, product({"one sample": "right"}))
    twice = result(RIGHT, REFUSED, product({"one sample": "right"}, refused="dynamo: no"))
    assert table.time_ratio(once) == 5 / 2.5
    assert table.time_ratio(twice) == 5 / 3.5
    assert table.memory_ratio(twice) == 1.5


def test_the_page_says_of_each_model_what_became_of_it(tmp_path: Path) -> None:
    table.write(tmp_path / "zoo.md", [result(EXAMPLE_ONLY, REFUSED, product(None))])
    text = (tmp_path / "zoo.md").read_text()
    row = "| x | 7 | **wrong**; right: the example, one sample, third sizes | refuses "
    assert f"{row}| refuses: no \\| &lt;exporter> can | - | - | - | - |" in text


def test_no_size_of_another_case_is_the_examples() -> None:
    entry = Entry("x", "handwritten", {"a": Given(("batch", "time", 3)), "m": Given(("batch", "time"), fill="mask")},
                  sizes={"time": (5, 6, 9)})  # fmt: skip
    assert [made(entry, case)["a"].shape for case in CASES] == [(2, 5, 3), (1, 5, 3), (4, 6, 3), (7, 9, 3)]
    assert made(entry, "other sizes")["m"].sum(1).tolist() == [6, 5, 4, 3]
    assert entry.dynamic == {"a": {0: "batch", 1: "time"}, "m": {0: "batch", 1: "time"}}


def test_the_zoo_has_so_many_models_of_each_family() -> None:
    count = Counter(entry.family for entry in ENTRIES)
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES) >= 80
    assert count["timm"] >= 20
    assert count["torchvision"] >= 15
    assert count["transformers"] >= 20
    assert count["handwritten"] >= 25
    assert sorted(e.name for n in (1, 2, 3) for e in chosen("*", f"{n}/3")) == sorted(e.name for e in ENTRIES)
