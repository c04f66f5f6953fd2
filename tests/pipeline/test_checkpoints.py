"""torch.save_full and checkpoint.resume_check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import DIGITS, ROOT
from tests.pipeline.test_stages_onnx import bundle, folder
from tests.pipeline.test_stages_torch import CASES, stage
from tests.pipeline.test_stages_torch import bundle as bundle_of

__all__ = ["bundle", "folder"]

DATA = DIGITS / "heldout.npz"

TRAINED = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))

def optimizer(model):
    return torch.optim.AdamW([{"params": model[1].parameters(), "lr": 0.01}, {"params": model[4].parameters()}])
"""


def resume(tmp_path: Path, checkpoint: Path, **params: Any) -> StageRun:
    (tmp_path / "trained.py").write_text(TRAINED)
    return run_stage(
        stage("checkpoint.resume_check"), tmp_path / "run", inputs={"checkpoint": checkpoint, "data": DATA},
        params={"factory": "trained.py:build", **params}, project=tmp_path,
    )  # fmt: skip


def train(tmp_path: Path, steps: int, save_after: int, **extra: Any) -> list[float]:
    """Train without an interruption, write checkpoint.pt on the way, and return every later loss."""
    scope: dict[str, Any] = {}
    exec(TRAINED, scope)
    with np.load(DATA) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = scope["build"]()
    optimizer = scope["optimizer"](model)
    losses: list[float] = []
    for step in range(steps):
        if step == save_after:
            content = {
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "rng_state": torch.get_rng_state(),
                "loss": losses[-1],
                **extra,
            }
            torch.save(content, tmp_path / "checkpoint.pt")
        rows = torch.arange((step - save_after) * 32, (step - save_after + 1) * 32) % len(x)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    return losses[save_after:]


def test_resuming_has_the_losses_of_the_uninterrupted_training_bit_for_bit(tmp_path: Path) -> None:
    expected = train(tmp_path, steps=60, save_after=50)
    made = resume(tmp_path, tmp_path / "checkpoint.pt", make_optimizer="trained.py:optimizer", max_jump=1.5)
    report = json.loads(made["report"].read_text())
    assert report["losses"] == report["losses_interrupted"] == expected
    assert report["untrained_loss"] > 2
    assert report["interrupted_after"] == 5


def test_the_examples_checkpoint_resumes(tmp_path: Path) -> None:
    made = run_stage(
        stage("checkpoint.resume_check"), tmp_path, inputs={"checkpoint": DIGITS / "digits.pt", "data": DATA},
        params={"factory": "examples/digits/model.py:build", "optimizer": "SGD"}, project=ROOT,
    )  # fmt: skip
    assert made.figures["first_loss"] < 0.5 < made.figures["untrained_loss"]


def _edit(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in (content | changes).items() if v is not None}, path)


@pytest.mark.parametrize(
    ("changes", "params", "kind", "said"),
    [
        ({"optimizer_state_dict": None}, {}, StageError, "has no optimizer_state_dict"),
        ({"loss": 1e-6}, {"max_jump": 2.0}, GateError, "the checkpoint's was 1e-06: the limit is a factor of 2"),
        ({"loss": None}, {"max_jump": 2.0}, StageError, "max_jump needs the checkpoint's `loss`"),
        ({}, {"optimizer": "AdamW", "make_optimizer": None}, StageError, "the checkpoint's optimizer doesn't match"),
        ({}, {"optimizer": "Adma", "make_optimizer": None}, StageError, "torch.optim has no optimizer 'Adma'"),
        ({}, {"optimizer": "AdamW"}, StageError, "either `optimizer` or `make_optimizer`"),
        ({}, {"loss": "mse_loss"}, StageError, "step 0 fails: .*check that data and loss match"),
    ],
)  # fmt: skip
def test_what_does_not_resume_is_refused(
    tmp_path: Path, changes: dict[str, Any], params: dict[str, Any], kind: type[Exception], said: str
) -> None:
    train(tmp_path, steps=21, save_after=20)
    _edit(tmp_path / "checkpoint.pt", **changes)
    with pytest.raises(kind) as error:
        resume(tmp_path, tmp_path / "checkpoint.pt", **{"make_optimizer": "trained.py:optimizer", **params})
    assert re.search(said, str(error.value))


def test_an_optimizer_without_its_state_and_an_untrained_model_are_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=21, save_after=20)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)["optimizer_state_dict"]
    _edit(path, optimizer_state_dict={"state": {}, "param_groups": state["param_groups"]})
    with pytest.raises(GateError, match="the checkpoint's optimizer has no state"):
        resume(tmp_path, path, make_optimizer="trained.py:optimizer")
    _edit(path, optimizer_state_dict=state, model_state_dict={k: torch.randn_like(v) * 5 for k, v in torch.load(path, weights_only=True)["model_state_dict"].items()})  # fmt: skip
    with pytest.raises(GateError, match="training would start from scratch"):
        resume(tmp_path, path, make_optimizer="trained.py:optimizer")


@pytest.mark.parametrize("name", CASES)
def test_a_full_module_loads_in_a_process_that_has_only_its_folder(tmp_path: Path, name: str) -> None:
    model = bundle_of(tmp_path, name, **CASES[name])["model"]
    made = run_stage(stage("torch.save_full"), tmp_path / "f", inputs={"model": model})
    assert made.figures["max_abs"] < 1e-6
    assert sorted(p.name for p in made["model"].iterdir()) == ["code", "load_model.py", "model.pt"]


def test_the_loader_beside_a_full_module_is_all_that_a_user_needs(tmp_path: Path, bundle: Path) -> None:
    made = run_stage(stage("torch.save_full"), tmp_path / "f", inputs={"model": bundle})["model"]
    script = "from load_model import load; import torch; print(tuple(load()(torch.zeros(3, 1, 8, 8)).shape))"
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=made, capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 10)", done.stderr
