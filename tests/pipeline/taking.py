"""The weights of one small model, and their way out of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy_runner.errors import StageError
from deploy_runner.stages.model import tensor_files
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage

__all__ = ["assert_weights", "refused", "take", "trained", "weights"]


def trained() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def weights() -> dict[str, torch.Tensor]:
    """Return a small model with the weights of one seed."""
    return dict(trained().state_dict())


def take(
    folder: Path, checkpoint: Path, *, base: Path | None = None, trust: bool = False, **params: Any
) -> StageRun:
    """Take the weights out of a checkpoint."""
    """Return its weights."""
    inputs = {"checkpoint": checkpoint} | ({"base": base} if base else {})
    return run_stage(
        stage("checkpoint.state_dict"), folder / "run", inputs=inputs, params=params, trust=trust
    )


def assert_weights(made: StageRun, expected: dict[str, torch.Tensor], **figures: Any) -> None:
    """Assert that the weights are these, bit for bit, and some figures."""
    found = tensor_files.read(made["weights"])
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert {name: made.figures.get(name) for name in figures} == figures


def refused(folder: Path, checkpoint: Path, said: str, **given: Any) -> StageError:
    """Assert that a checkpoint is refused in one sentence, and return the error."""
    with pytest.raises(StageError, match=said) as error:
        take(folder, checkpoint, **given)
    assert "\n" not in error.value.message
    return error.value
