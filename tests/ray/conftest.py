"""One Ray cluster for all tests, and projects that run on it with a shared cache."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TEXT_STAGES, Project
from tests.ray.cluster import Cluster, joined

SECRET = "a key for tests only, of more than thirty-two characters"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Cluster]:
    """The cluster: two nodes with one CPU each, beside a head without any."""
    base = tmp_path_factory.getbasetemp()
    with joined((base if worker_id == "master" else base.parent) / "ray") as made:
        yield made


class RayProject(Project):
    """A project whose runs go to the cluster, with a shared cache of its own."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.remote = folder.parent / "remote"
        self.remote.mkdir()
        self.env |= {"DEPLOY_RUNNER_CACHE_KEY": SECRET, "RAY_AUTH_MODE": "disabled"}
        self.head = f"cache: {{remote: 'file://{self.remote}', push: true}}\n"
        self.ray = ("--executor", "ray", "--ray-address", cluster.address)

    def pipeline(self, stages: str, *, head: str = "") -> None:
        """Write pipeline.yaml with these stages and the shared cache."""
        super().pipeline(stages, head=self.head + head)

    def alike(self, folder: Path) -> RayProject:
        """Return a copy of this project in another folder, with an empty store and an empty cache."""
        (folder / "copy").mkdir(parents=True)
        copy = RayProject(folder / "copy" / "project", self.cluster)
        shutil.copytree(
            self.folder, copy.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".deploy-runner")
        )
        text = (copy.folder / "pipeline.yaml").read_text()
        (copy.folder / "pipeline.yaml").write_text(text.replace(str(self.remote), str(copy.remote)))
        return copy


@pytest.fixture
def free_port() -> int:
    """A port of loopback on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def project(tmp_path: Path, cluster: Cluster) -> RayProject:
    """An empty project with the stage types of TEXT_STAGES."""
    made = RayProject(tmp_path / "project", cluster)
    made.write("stages/texts.py", TEXT_STAGES)
    made.write("in.txt", "hello")
    return made
