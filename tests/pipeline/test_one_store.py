"""`DEPLOY_RUNNER_HOME`: one store for all of a user's projects, wherever it lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import Project


@pytest.fixture
def store(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with one store in the home folder, which does not exist yet."""
    return {"HOME": str(tmp_path / "home"), "DEPLOY_RUNNER_HOME": "~/store/of mine"}


def test_what_one_project_built_is_a_hit_in_another_and_in_a_moved_one(
    chain: Project, store: dict[str, str], tmp_path: Path
) -> None:
    assert chain.run(**store)["ran"] == 3
    assert not (chain.folder / ".deploy-runner").exists()
    other = Project(tmp_path / "elsewhere/other")
    shutil.copytree(chain.folder, other.folder, dirs_exist_ok=True)
    pipeline = other.folder / "pipeline.yaml"
    pipeline.rename(other.folder / "named-otherwise.yaml")
    assert other.run("named-otherwise.yaml", **store)["hit"] == 3
    chain.folder.rename(tmp_path / "moved")
    moved = Project(tmp_path / "moved")
    assert moved.run()["ran"] == 3  # In a store of its own, which a copy brings along.
    copy = Project(tmp_path / "copy")
    shutil.copytree(moved.folder, copy.folder, dirs_exist_ok=True)
    assert copy.run()["hit"] == 3
    absolute = {**store, "DEPLOY_RUNNER_HOME": f"{store['HOME']}/store/of mine"}
    assert moved.run(**absolute)["hit"] == 3
    relative = {**store, "DEPLOY_RUNNER_HOME": "../home/store/of mine"}
    assert moved.run(**relative)["hit"] == 3


def test_gc_in_one_project_keeps_what_the_last_run_of_every_other_needs(
    project: Project, store: dict[str, str], tmp_path: Path
) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    other = Project(tmp_path / "other")
    shutil.copytree(project.folder, other.folder, dirs_exist_ok=True)
    other.write("in.txt", "of the other")
    other.run(**store)
    for number in range(3):
        project.write("in.txt", f"text {number}")
        project.run(**store)
    project.cli("cache", "gc", "--keep-runs", "1", **store)
    assert other.run(**store)["hit"] == 1
    assert project.run(**store)["hit"] == 1
    # The store moves: every project is where it was, seen from it no more, and still there.
    moved = {**store, "DEPLOY_RUNNER_HOME": str(tmp_path / "another-disk")}
    Path(store["HOME"], "store/of mine").rename(moved["DEPLOY_RUNNER_HOME"])
    project.cli("cache", "gc", "--keep-runs", "1", **moved)
    assert other.run(**moved)["hit"] == 1


@pytest.mark.slow
def test_a_store_on_another_disk_gives_and_takes(chain: Project, tmp_path: Path) -> None:
    disk = Path("/dev/shm")
    if not os.access(disk, os.W_OK) or disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    home = disk / f"deploy-runner-{os.getpid()}"
    try:
        assert chain.run(DEPLOY_RUNNER_HOME=str(home))["ran"] == 3
        assert chain.run(DEPLOY_RUNNER_HOME=str(home))["hit"] == 3
        assert chain.output("c", DEPLOY_RUNNER_HOME=str(home)) == b"HELLO!HELLO!"
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize(
    ("home", "exits", "said"),
    [
        (
            "{}/a-file", 1,
            "error: {0}/a-file can't be the store's folder: {0}/a-file is a file "
            "(set DEPLOY_RUNNER_HOME to a folder that can be written)\n",
        ),
        ("{}/a-file/below/it", 1, "error: {0}/a-file/below/it can't be the store's folder: {0}/a-file is a file "
                                  "(set DEPLOY_RUNNER_HOME to a folder that can be written)\n"),
        ("/proc/store", 1, "error: the store's folder /proc/store can't be created: No such file or directory "
                           "(set DEPLOY_RUNNER_HOME to a folder that can be written)\n"),
        ("~nobody-at-all/store", 2, "error: DEPLOY_RUNNER_HOME is ~nobody-at-all/store, and this machine knows no such "
                                    "home folder (set DEPLOY_RUNNER_HOME to an absolute path)\n"),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_is_one_sentence(chain: Project, home: str, exits: int, said: str) -> None:
    chain.write("a-file", "")
    home, said = home.format(chain.folder), said.format(chain.folder)
    assert chain.cli("run", exits=exits, DEPLOY_RUNNER_HOME=home).stderr == said
