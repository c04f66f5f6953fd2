"""torch.export, onnx.optimize and checkpoint.create."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import CASES, line_of, stage
from tests.bundles import bundle as bundle_of
from tests.conftest import DIGITS


@pytest.mark.parametrize("name", [name for name in CASES if name != "memory"])
def test_an_exported_program_agrees_with_eager_at_every_size(tmp_path: Path, name: str) -> None:
    model = bundle_of(tmp_path, name, **CASES[name])["model"]
    made = run_stage(stage("torch.export"), tmp_path / "e", inputs={"model": model})
    assert made.figures["max_abs"] < 1e-5
    assert len(made.figures["cases"]) == 3
    assert str(tmp_path).encode() not in made["model"].read_bytes()


def test_an_axis_that_the_model_fixes_is_named(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "memory", **CASES["memory"])["model"]
    with pytest.raises(StageError, match="the model fixes the dynamic axis 'length' to 5"):
        run_stage(stage("torch.export"), tmp_path / "e", inputs={"model": model})


def test_control_flow_on_data_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "branch", example={"shape": [2, 4]})["model"]
    with pytest.raises(
        StageError, match=f"the model's control flow depends on its data at {line_of('if x.sum')}"
    ) as error:
        run_stage(stage("torch.export"), tmp_path / "e", inputs={"model": model})
    assert "torch.cond" in error.value.fix


def test_an_optimised_model_is_portable_and_agrees(tmp_path: Path, fp32: Path, bundle: Path) -> None:
    inputs = {"model": fp32, "reference": bundle}
    made = [run_stage(stage("onnx.optimize"), tmp_path / str(i), inputs=inputs) for i in range(2)]
    model = onnx.load(made[0]["model"] / "model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert made[0].figures["nodes"] <= made[0].figures["nodes_before"]
    assert (made[0]["model"] / "model.onnx").read_bytes() == (made[1]["model"] / "model.onnx").read_bytes()


def taken(tmp_path: Path) -> StageRun:
    return run_stage(
        stage("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": DIGITS / "digits.pt"}
    )


def test_a_created_checkpoint_holds_what_training_needs(tmp_path: Path) -> None:
    source = taken(tmp_path)
    inputs = {
        "weights": source["weights"],
        "metadata": source["metadata"],
        "checkpoint": DIGITS / "digits.pt",
    }
    params = {"config": {"width": 32}, "training_date": "2026-11-24"}
    made = [
        run_stage(stage("checkpoint.create"), tmp_path / str(i), inputs=inputs, params=params)["checkpoint"]
        for i in range(2)
    ]
    assert made[0].read_bytes() == made[1].read_bytes()
    content = torch.load(made[0], weights_only=True)
    original = torch.load(DIGITS / "digits.pt", weights_only=False)
    assert content["epoch"] == original["epoch"]
    assert content["model_config"] == {"width": 32}
    assert content["training_date"] == "2026-11-24"
    assert content["optimizer_state_dict"]["param_groups"] == original["optimizer_state_dict"]["param_groups"]
    assert all(
        torch.equal(content["model_state_dict"][k], v) for k, v in original["model_state_dict"].items()
    )


def test_what_the_source_says_of_its_training_is_kept(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    source: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5).state_dict(),
        "rng_state": torch.get_rng_state(),
        "model_config": {"width": 3},
        "training_date": datetime.date(2026, 11, 24),
    }
    torch.save(source, tmp_path / "c.pt")
    taken = run_stage(
        stage("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": tmp_path / "c.pt"}
    )
    inputs = {**taken.outputs, "checkpoint": tmp_path / "c.pt"}
    made = run_stage(stage("checkpoint.create"), tmp_path / "m", inputs=inputs)["checkpoint"]
    found = torch.load(made, weights_only=True)
    assert found["training_date"] == "2026-11-24"
    assert (found["model_config"], found["scheduler"]["step_size"]) == ({"width": 3}, 5)
    assert torch.equal(found["rng_state"], source["rng_state"])


def test_a_checkpoint_without_an_optimizer_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "c.pt")
    inputs = {"weights": taken(tmp_path)["weights"], "checkpoint": tmp_path / "c.pt"}
    with pytest.raises(StageError, match="has no optimizer_state_dict"):
        run_stage(stage("checkpoint.create"), tmp_path / "x", inputs=inputs)
