"""The digits, prepared and exported once for each module that asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import CALIBRATION, DIGITS, HELD, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the module's own."""
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    """The digits, prepared."""
    taken = run_stage(
        stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": DIGITS / "digits.pt"}
    )
    params = {"factory": "examples/digits/model.py:build", "example": {"shape": [1, 1, 8, 8]}}
    inputs = {"weights": taken["weights"], "samples": HELD}
    return run_stage(stage("model.prepare"), folder / "b", inputs=inputs, params=params, project=ROOT)[
        "model"
    ]


@pytest.fixture(scope="module")
def fp32(folder: Path, bundle: Path) -> Path:
    """The digits as ONNX."""
    return run_stage(stage("onnx.export"), folder / "fp32", inputs={"model": bundle})["model"]


@pytest.fixture(scope="module")
def int8(folder: Path, fp32: Path) -> Path:
    """The digits as calibrated int8."""
    inputs = {"model": fp32, "calibration": CALIBRATION}
    return run_stage(stage("onnx.quantize_static"), folder / "int8", inputs=inputs)["model"]
