"""The pre-save checklist sees a model that doesn't look at its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, mask=None, lengths=None):
        kept = torch.arange(x.shape[1]) < lengths[:, None] if lengths is not None else torch.ones(x.shape[:2])
        return self.head((x * kept[..., None]).sum(1))
"""
ROWS = {"x": {"shape": [2, 7, 4]}, "mask": {"shape": [2, 7], "dtype": "int64", "fill": "random"}}


def prepared(tmp_path: Path, weight: torch.Tensor, example: dict[str, Any]) -> StageRun:
    (tmp_path / "net.py").write_text(MODEL)
    save_file({"head.weight": weight, "head.bias": torch.ones(3)}, tmp_path / "weights.safetensors")
    return run_stage(
        stage("model.prepare"), tmp_path, inputs={"weights": tmp_path / "weights.safetensors"},
        params={"factory": "net.py:Net", "example": example}, project=tmp_path,
    )  # fmt: skip


def test_a_head_that_was_never_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match="no output depends on any input: part of the model may never have been"
    ):
        prepared(tmp_path, torch.zeros(3, 4), ROWS)


def test_an_input_without_effect_is_named(tmp_path: Path) -> None:
    made = prepared(tmp_path, torch.ones(3, 4), ROWS)
    line = json.loads(made["checklist"].read_text())["outputs depend on inputs"]
    assert line == {"ok": True, "detail": "no output depends on mask"}


def test_masks_and_lengths_are_filled_by_their_names(tmp_path: Path) -> None:
    import numpy as np

    axes = {"x": {"0": "batch", "1": "time"}, "mask": {"0": "batch", "1": "time"}, "lengths": {"0": "batch"}}
    example = {
        "x": {"shape": [2, 9, 4]},
        "mask": {"shape": [2, 9], "dtype": "int64"},
        "lengths": {"shape": [2], "dtype": "int64"},
    }
    (tmp_path / "net.py").write_text(MODEL)
    save_file({"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)}, tmp_path / "weights.safetensors")
    made = run_stage(
        stage("model.prepare"), tmp_path, inputs={"weights": tmp_path / "weights.safetensors"},
        params={"factory": "net.py:Net", "example": example, "dynamic": axes}, project=tmp_path,
    )  # fmt: skip
    arrays = dict(np.load(made["model"] / "reference.npz"))
    lengths = {n.split("/")[0]: a for n, a in arrays.items() if n.endswith("in/lengths")}
    assert len(lengths) >= 3
    for case, found in lengths.items():
        mask = arrays[f"{case}/in/mask"]
        assert mask.sum(1).tolist() == found.tolist() == sorted(found, reverse=True)
        assert found[0] == mask.shape[1]
        assert (np.diff(mask, axis=1) <= 0).all()
        assert (found >= 1).all()
    assert any((found < found[0]).any() for found in lengths.values())


DETECTOR = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, images):
        return [{"scores": score[score > 0.5]} for score in self.head(images)]
"""


def detector(tmp_path: Path, bias: float, dynamic: dict[str, Any] | None) -> StageRun:
    (tmp_path / "boxes_of_rows.py").write_text(DETECTOR)
    save_file(
        {"head.weight": torch.zeros(1, 4), "head.bias": torch.tensor([bias])}, tmp_path / "w.safetensors"
    )
    params = {"factory": "boxes_of_rows.py:Net", "example": {"shape": [1, 4]}} | (
        {} if dynamic is None else {"dynamic": dynamic}
    )
    return run_stage(stage("model.prepare"), tmp_path, inputs={"weights": tmp_path / "w.safetensors"},
                     params=params, project=tmp_path)  # fmt: skip


def test_a_result_for_each_sample_is_no_output_of_a_batch(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the model returns \d tensors for images .* and 2 for other inputs .* "
                       r"returns as many for every input, e\.g\. for one sample alone, with `dynamic: \{\}`"):  # fmt: skip
        detector(tmp_path, 1.0, None)


def test_outputs_that_are_all_empty_compare_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match="every output is empty, so that nothing could be compared: give real"
    ):
        detector(tmp_path, 0.0, {})
