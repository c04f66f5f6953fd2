"""What several tests of confinement, and of signatures, share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.security.hostile import KERNELS, Kernel
from tests.security.keys import PIPELINE, new_key


@pytest.fixture(params=[*KERNELS.values()], ids=[*KERNELS])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A kernel that allows more or less, and the user whose run it is."""
    made: Kernel = request.param
    return made


@pytest.fixture
def signed(project: Project, tmp_path: Path) -> tuple[Project, Path, Path, str]:
    """A project, its signed folder, the public key and the private one."""
    private, public = new_key(tmp_path, "public")
    project.write("accuracy.json", json.dumps({"accuracy": 99.2, "drop": 0.1, "note": "words"}))
    project.pipeline(PIPELINE)
    project.run(SIGNING_KEY=private)
    project.cli("get", "signed", "--to", "out")
    return project, project.folder / "out", public, private
