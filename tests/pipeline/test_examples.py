"""The example of each stage type runs, in an empty folder with nothing but what its page shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import Project, clean_environment
from tests.examples import files_of, names, shared
from tests.overlay import overlay

pytestmark = pytest.mark.slow

_OVERLAYS = {"openvino.convert": "openvino", "openvino.quantize": "openvino", "push.mlflow": "mlflow"}
"""The extras that are too large for every environment."""


def prepare(folder: Path, files: Mapping[str, str], python: str = sys.executable) -> None:
    """Write the files, and run those that are made to be run, as the page says."""
    for name, text in files.items():
        (folder / name).write_text(text)
        if 'if __name__ == "__main__"' in text:
            subprocess.run([python, name], cwd=folder, env=clean_environment(), check=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page shows before all examples, and what running them has left."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder, shared())
    return folder


@pytest.mark.parametrize("uses", names())
def test_the_example_of_a_stage_type_runs(
    uses: str, trained: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base
    extra = _OVERLAYS.get(uses)
    python = str(overlay(base / "overlays", extra)) if extra else sys.executable
    project = Project(tmp_path / "empty", python)
    shutil.copytree(trained, project.folder, dirs_exist_ok=True)
    prepare(project.folder, files_of(uses), python)
    key = subprocess.run(
        ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    home = str(base / "home-of-examples")
    states = project.states(SIGNING_KEY=key, DEPLOY_RUNNER_HOME=home)
    assert set(states.values()) <= {"ran", "hit"}
    assert set(project.states(SIGNING_KEY=key, DEPLOY_RUNNER_HOME=home).values()) == {"hit"}
