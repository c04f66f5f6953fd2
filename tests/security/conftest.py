"""What several tests of confinement, and of signatures, share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TEXT_STAGES, Project
from tests.security.hostile import KERNELS, Kernel
from tests.security.keys import PIPELINE, new_key


@pytest.fixture(params=[*KERNELS.values()], ids=[*KERNELS])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A kernel that allows more or less, and the user whose run it is."""
    made: Kernel = request.param
    return made


@pytest.fixture(scope="session")
def signed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path, str]:
    """A project with a signed folder, the public key and the private one."""
    place = tmp_path_factory.mktemp("signed")
    private, public = new_key(place, "public")
    project = Project(place / "project")
    project.write("stages/texts.py", TEXT_STAGES)
    project.write("in.txt", "hello")
    project.write("accuracy.json", json.dumps({"accuracy": 99.2, "drop": 0.1, "note": "words"}))
    project.pipeline(PIPELINE)
    project.run(SIGNING_KEY=private)
    project.cli("get", "signed", "--to", "out")
    return project, public, private


@pytest.fixture
def signed(signed_once: tuple[Project, Path, str], project: Project) -> tuple[Project, Path, Path, str]:
    """A copy of the project, its signed folder, the public key and the private one."""
    made, public, private = signed_once
    shutil.copytree(made.folder, project.folder, dirs_exist_ok=True)
    return project, project.folder / "out", public, private
