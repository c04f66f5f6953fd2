"""The digits, prepared and exported once for each module that asks, and shared caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from deploy_runner.testing import run_stage
from tests import registry
from tests.bundles import stage
from tests.conftest import CALIBRATION, DIGITS, HELD, ROOT
from tests.faults.proxy import FaultProxy
from tests.machines import Bucket, Share


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


@pytest.fixture(params=["s3", "file"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Share]:
    """An empty shared cache, in a bucket's prefix and in a folder whose names have spaces."""
    if request.param == "file":
        yield Share(tmp_path / "a share" / "größe")
        return
    server = request.getfixturevalue("s3_server")
    with FaultProxy(server["AWS_ENDPOINT_URL"]) as proxy:
        yield Bucket(server, f"cache-{uuid4().hex}", proxy, prefix="our team/größe")


@pytest.fixture
def share(tmp_path: Path) -> Share:
    """An empty folder that several machines mount."""
    return Share(tmp_path / "share")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference registry."""
    return registry.unpack(tmp_path_factory.mktemp("registry") / "package")
