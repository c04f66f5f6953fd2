"""Stage types by their names, and bundles of the models in tests/models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from deploy_runner.registry import Registry
from deploy_runner.sdk import Stage
from deploy_runner.stages.model.npz import read_arrays, write_arrays
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import ROOT
from tests.models.make import EXAMPLES
from tests.models.make import weights as trained

__all__ = ["CASES", "MODELS", "bundle", "line_of", "stage", "turn_one_sample"]

MODELS = (ROOT / "tests/models/models.py").read_text()

CASES = {name: EXAMPLES[name] for name in ("text", "memory", "two", "tied")}
"""Models of several inputs, outputs and types, with their examples."""


def stage(uses: str) -> type[Stage]:
    """Return a stage type."""
    found = Registry(ROOT / "tests").get(uses)
    assert found is not None
    return found.cls


def line_of(code: str) -> str:
    """Return where a line of MODELS is, as errors name it."""
    lines = [number for number, line in enumerate(MODELS.splitlines(), 1) if code in line]
    return f"models.py:{lines[0]}"


def bundle(tmp_path: Path, name: str, **params: Any) -> StageRun:
    """Make the bundle of one of MODELS, with its trained weights."""
    project = tmp_path / "project"
    project.mkdir(parents=True, exist_ok=True)
    (project / "models.py").write_text(MODELS)
    made = tmp_path / f"{name}.pt"
    torch.save({"x": torch.ones(1)} if name == "wrong" else trained(name), made)
    extracted = run_stage(stage("checkpoint.state_dict"), tmp_path / f"w-{name}", inputs={"checkpoint": made})
    return run_stage(
        stage("model.prepare"), tmp_path / f"b-{name}", inputs={"weights": extracted["weights"]},
        params={"factory": f"models.py:{name}", **(params or EXAMPLES[name])}, project=project,
    )  # fmt: skip


def turn_one_sample(source: Path, target: Path) -> None:
    """Copy reference cases, the first answer of each with its sign turned."""
    arrays = read_arrays(source)
    for name, array in arrays.items():
        if "/out/" in name:
            array[0] *= -1
    write_arrays(target, arrays)
