"""The C++ example is compiled with what the Python packages bring, and computes what eager does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import CALIBRATION, HELD, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cpp") / "cpp"
    shutil.copytree(ROOT / "examples/cpp", made)
    subprocess.run(["make", "-C", str(made), f"PYTHON={sys.executable}"], check=True)
    with np.load(HELD) as held:
        held["x"][:5].astype(np.float32).tofile(made / "input.f32")
    return made


def run(programs: Path, name: str, model: Path) -> np.ndarray:
    done = subprocess.run(
        [programs / name, model, "5,1,8,8", programs / "input.f32"],
        capture_output=True,
        text=True,
        check=True,
    )
    return np.array([line.split() for line in done.stdout.splitlines()], np.float32)


def expected(bundle: Path) -> np.ndarray[Any, Any]:
    with np.load(bundle / "reference.npz") as arrays:
        output: np.ndarray[Any, Any] = arrays["samples64/out/output"][:5]
    return output


def test_libtorch_runs_the_trace_and_the_int8_program(tmp_path: Path, programs: Path, bundle: Path) -> None:
    traced = run_stage(stage("torch.trace"), tmp_path / "t", inputs={"model": bundle})["model"]
    assert np.allclose(run(programs, "torchscript", traced), expected(bundle), atol=1e-4, rtol=1e-4)
    inputs = {"model": bundle, "calibration": CALIBRATION}
    int8 = run_stage(stage("torch.quantize_static"), tmp_path / "q", inputs=inputs)["model"]
    assert (run(programs, "torchscript", int8).argmax(1) == expected(bundle).argmax(1)).all()


def test_onnx_runtime_runs_the_onnx_model(programs: Path, fp32: Path, bundle: Path) -> None:
    found = run(programs, "onnx", fp32 / "model.onnx")
    assert np.allclose(found, expected(bundle), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
def test_wrong_arguments_are_one_sentence(programs: Path, name: str) -> None:
    wrong: list[list[Any]] = [
        [],
        ["missing", "5,1,8,8", programs / "input.f32"],
        ["missing", "9999,8", programs / "input.f32"],
    ]
    for arguments in wrong:
        done = subprocess.run([programs / name, *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
