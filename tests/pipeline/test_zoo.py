"""The product converts at least what the best bare call of torch's exporters does, and lets nothing wrong pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo import building, product, table, truth
from benchmarks.zoo.__main__ import run
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.zoo import ENTRIES
from deploy_runner import api

QUICK = (
    "timm/vit_tiny_patch16_224",
    "torchvision/squeezenet1_1",
    "transformers/gpt2",
    "hand/complex_net",
    "hand/graph_net",
    "hand/packed_lstm",
    "hand/stft",
)
"""Models of every family that take seconds; of some a bare exporter's file is wrong, or it refuses."""


def test_quick_models_of_the_zoo_are_converted_right(tmp_path: Path) -> None:
    chosen = {f"m{place}": entry for place, entry in enumerate(ENTRIES) if entry.name in QUICK}
    stages: dict[str, Any] = {}
    for name, entry in chosen.items():
        folder = tmp_path / name
        folder.mkdir()
        truth.write(entry, building.saved(entry, folder), folder)
        product.copy_code(entry, folder)
        stages |= product.exported(entry, f"{name}/", f"{name}-")
    product.write_pipeline(stages, tmp_path)
    record = api.run(api.load(tmp_path / "pipeline.yaml"))
    for name, entry in chosen.items():
        assert record.stages[f"{name}-onnx"]["state"] == "ran", record.stages[f"{name}-onnx"]["error"]
        file = product.fetched(tmp_path, tmp_path / name / "made", f"{name}-onnx")
        assert table.right(truth.check(file, tmp_path / name, by_name=True)), entry.name
    assert len(chosen) == len(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in ENTRIES])
def test_the_product_converts_what_a_bare_call_converts_and_nothing_wrong_passes(entry: Entry) -> None:
    (result,) = run([entry])
    assert table.verdict(result) in ("right", "both refuse"), table.line(result)
