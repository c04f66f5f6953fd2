"""push.mlflow by MLflow's own client, in environments of their own: a real server, and the store of a dry run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_runner.stages.model import protos
from tests import mlflow_server, venvs
from tests.conftest import HELD, Project

pytestmark = pytest.mark.slow

PIPELINE = """
register:
  uses: push.mlflow
  inputs: {model: model, reference: reference}
  with: {name: digits}
"""

_ASK = """
import json, sys
import mlflow, numpy as np
from mlflow import MlflowClient

mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
rows = list(client.search_model_versions("name='digits'"))
aliased = client.get_model_version_by_alias("digits", "champion")
loaded = mlflow.pyfunc.load_model("models:/digits@champion")
images = np.load(sys.argv[2])
try:
    loaded.predict({"image": images[:, :, :7]})
    refused = ""
except mlflow.MlflowException as error:
    refused = str(error)
places = [e.experiment_id for e in client.search_experiments()]
import onnx
onnx.checker.check_model(mlflow.onnx.load_model("models:/digits@champion"))
print(json.dumps({
    "answers": loaded.predict({"image": images})["output"].tolist(),
    "versions": sorted(int(r.version) for r in rows),
    "champion": int(aliased.version), "digest": aliased.tags["deploy_runner.digest"], "refused": refused,
    "example": sorted(loaded.input_example), "runs": len(client.search_runs(places)),
}))
"""


class Product:
    """The command line in an environment that has MLflow's client beside all that ours has."""

    def __init__(self, python: Path, project: Project) -> None:
        self._python, self.project = python, project

    def cli(self, *args: str, exits: int = 0, **env: str) -> str:
        done = subprocess.run(
            [self._python, "-m", "deploy_runner", *args], cwd=self.project.folder, env={**self.project.env, **env},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        assert done.returncode == exits, done.stdout + done.stderr
        return done.stdout + done.stderr

    def state(self, *args: str, exits: int = 0) -> dict[str, Any]:
        said = self.cli("run", *args, "--json", exits=exits).splitlines()
        found: dict[str, Any] = json.loads(next(line for line in reversed(said) if line.startswith("{")))
        return dict(found["stages"]["register"])


@pytest.fixture(scope="module")
def server_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlflow_server.interpreter(tmp_path_factory.mktemp("mlflow") / "venv")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "venv"
    return venvs.made(
        folder, "mlflow-skinny>=3.17,<4", "pandas>=2.2,<4", beside=sysconfig.get_path("purelib")
    )


@pytest.fixture
def product(python: Path, tmp_path: Path, fp32: Path, bundle: Path) -> Product:
    project = Project(tmp_path / "project")
    shutil.copytree(fp32, project.folder / "model")
    shutil.copytree(bundle, project.folder / "reference")
    project.pipeline(PIPELINE)
    return Product(python, project)


@pytest.fixture
def server(server_python: Path, tmp_path: Path) -> Iterator[str]:
    with mlflow_server.running(server_python, tmp_path / "server") as url:
        yield url


def ask(python: Path, url: str, folder: Path) -> dict[str, Any]:
    """Load the champion by MLflow itself, and ask it; return what it says and what is registered."""
    with np.load(HELD) as held:
        np.save(folder / "images.npy", held["x"][:5].astype(np.float32))
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [python, "-c", _ASK, url, str(folder / "images.npy")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_model_is_registered_once_and_rolled_back(
    product: Product, server: str, server_python: Path, tmp_path: Path
) -> None:
    live = f"target: {{name: production, live: true, mlflow: {{tracking_uri: '{server}'}}}}"
    product.project.write("live.yaml", live)
    to = ("--config", "live.yaml")
    first = product.state(*to)
    assert first["state"] == "ran", first
    found = ask(server_python, server, tmp_path)
    model = product.project.folder / "model"
    images = np.load(tmp_path / "images.npy")
    expected = protos.runner(model, threads=1)({"image": images})["output"]
    np.testing.assert_allclose(found.pop("answers"), expected, rtol=1e-5, atol=1e-5)
    assert "shape" in found.pop("refused").lower()
    digest = first["figures"]["digest"]
    assert found == {"versions": [1], "champion": 1, "digest": digest, "example": ["image"], "runs": 1}
    assert product.state(*to)["state"] == "converged"
    (model / "model.onnx").write_bytes(
        (model / "model.onnx").read_bytes() + b"\x72\x00"
    )  # An empty metadata.
    assert "missing" in product.cli("status", *to, exits=1)
    second = product.state(*to)["figures"]["digest"]
    assert "champion is version 1" in product.cli("rollback", "register", *to)
    assert ask(server_python, server, tmp_path)["digest"] == digest
    assert "champion is version 2" in product.cli("rollback", "register", "--to", second[:8], *to)
    found = ask(server_python, server, tmp_path)
    assert (found["versions"], found["champion"], found["digest"]) == ([1, 2], 2, second)
    assert "no version's digest begins with 0000" in product.cli(
        "rollback", "register", "--to", "0000", *to, exits=1
    )


def test_a_dry_run_needs_no_server(product: Product) -> None:
    product.project.write(
        "dry-run.yaml", "target: {name: dry-run, mlflow: {tracking_uri: 'http://127.0.0.1:1'}}"
    )
    dry = ("--config", "dry-run.yaml")
    assert product.state(*dry)["state"] == "ran"
    product.cli("get", "register.transcript", "--to", "transcript.json", *dry)
    said = json.loads((product.project.folder / "transcript.json").read_text())
    assert [row["call"] for row in said["calls"]] == [
        "CreateRegisteredModel", "CreateRun", "CreateModelVersion", "SetRegisteredModelAlias",
    ]  # fmt: skip
