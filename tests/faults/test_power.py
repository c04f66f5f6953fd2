"""The power goes at any moment: an artifact is right or absent, and the next run needs no human.

A run writes to a disk (tests/faults/disk.py) that keeps, when the power goes, what was synced, and of
the rest whatever chance wants. With FUSE all processes write to it; where there is none, the
calls of the runner's own process are told to the same model. A cut is taken during the run, and is what
SIGKILL and a power cut at that moment would have left; then the next run starts from it.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from pathlib import Path

import pytest

from deploy_runner.store.cas import Store
from deploy_runner.store.stat import sha256_file
from deploy_runner.store.verify import verify
from tests.conftest import ROOT, Project
from tests.faults.disk import Disk, File
from tests.faults.runs import orphans, prepare

FUSE = (
    importlib.util.find_spec("mfusepy") is not None
    and bool(find_library("fuse") or find_library("fuse3"))
    and os.access("/dev/fuse", os.W_OK)
)
needs_fuse = pytest.mark.skipif(not FUSE, reason="there is no libfuse here, or no /dev/fuse")

Layer = Callable[[Project, Path, tuple[str, ...]], None]


def by_os(project: Project, place: Path, args: tuple[str, ...]) -> None:
    """Run with the calls of the runner's process told to the disk."""
    home = place / "home"
    subprocess.run(
        [sys.executable, "-m", "tests.faults.os_layer", str(place), *args],
        cwd=project.folder, check=True, timeout=300,
        env={**project.env, "PYTHONPATH": str(ROOT), "DEPLOY_RUNNER_HOME": str(home)},
    )  # fmt: skip
    shutil.rmtree(home)


def by_fuse(project: Project, place: Path, args: tuple[str, ...]) -> None:
    """Run with the store on the disk, mounted."""
    home = place / "home"
    home.mkdir()
    command = [sys.executable, "-m", "tests.faults.fuse_layer", str(home), str(place), *args]
    layer = subprocess.Popen(command, cwd=ROOT)
    try:
        while layer.poll() is None and not os.path.ismount(home):
            os.sched_yield()
        project.run(DEPLOY_RUNNER_HOME=str(home))
    finally:
        subprocess.run(["umount" if os.geteuid() == 0 else "fusermount", str(home)], check=False)
        layer.wait(timeout=60)
    home.rmdir()


def cut(project: Project, layer: Layer, place: Path, wanted: int, seed: int, *, disk: str) -> list[Path]:
    """Return the stores that power cuts at random moments of a run leave; all moments if `wanted` is 0."""
    place.mkdir()
    layer(project, place, (str(seed), disk))
    count = int((place / "count").read_text())
    moments = range(1, count + 1)
    chosen = random.Random(seed).sample(moments, min(wanted or count, count))
    layer(project, place, (str(seed), disk, *map(str, chosen)))
    return sorted(p for p in place.iterdir() if p.is_dir())


def wrong_objects(home: Path) -> list[str]:
    """Return the objects that aren't what their names say, and leave them."""
    return [digest for digest, path in Store(home).objects() if sha256_file(path) != digest]


def goes_on(project: Project, home: Path, expected: dict[str, object]) -> None:
    """Assert that the next run makes the same, and leaves a sound store and nothing else."""
    result = project.run(DEPLOY_RUNNER_HOME=str(home))
    assert {k: v["outputs"] for k, v in result["stages"].items()} == expected, home
    assert verify(Store(home)).ok, home
    assert not orphans(home), home


def survives(project: Project, layer: Layer, place: Path, wanted: int, seed: int) -> None:
    expected = prepare(project)
    homes = cut(project, layer, place, wanted, seed, disk="obeys")
    for home in homes:
        assert not wrong_objects(home), home
        goes_on(project, home, expected)
        shutil.rmtree(home)
    print(f"{len(homes)} power cuts")


def test_an_artifact_is_right_or_absent_after_a_power_cut(project: Project, tmp_path: Path) -> None:
    survives(project, by_os, tmp_path / "disk", 12, seed=1)


@needs_fuse
def test_an_artifact_is_right_or_absent_after_a_power_cut_of_a_mounted_disk(
    project: Project, tmp_path: Path
) -> None:
    survives(project, by_fuse, tmp_path / "disk", 12, seed=2)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [3])
def test_a_power_cut_at_every_change_of_the_runner(project: Project, tmp_path: Path, seed: int) -> None:
    survives(project, by_os, tmp_path / "disk", 0, seed)


@needs_fuse
@pytest.mark.faults
@pytest.mark.parametrize("seed", [4])
def test_a_power_cut_at_every_change_of_a_mounted_disk(project: Project, tmp_path: Path, seed: int) -> None:
    survives(project, by_fuse, tmp_path / "disk", 0, seed)


@pytest.mark.parametrize("layer", [by_os, pytest.param(by_fuse, marks=needs_fuse)])
def test_a_disk_that_lies_about_syncing_is_found_out_and_healed(
    project: Project, tmp_path: Path, layer: Layer
) -> None:
    """What fsync would have saved is wrong now: the layer bites, and a wrong object is never used."""
    expected = prepare(project)
    homes = cut(project, layer, tmp_path / "disk", 80, seed=7, disk="lies")
    damaged = [home for home in homes if wrong_objects(home)]
    assert len(damaged) > 3
    for home in damaged[:4]:
        goes_on(project, home, expected)


def test_the_disk_keeps_what_was_synced_and_forgets_what_was_not(tmp_path: Path) -> None:
    disk = Disk([], lambda count: None)
    kept, lost = File(), File()
    disk.make("kept", kept)
    disk.write(kept, b"safe", 0)
    disk.sync(kept)
    disk.sync(disk.root)
    disk.make("lost", lost)
    disk.write(lost, b"unsafe", 0)
    disk.remove("kept")
    found = set()
    for seed in range(60):
        disk.survive(tmp_path / str(seed), random.Random(seed))
        found.add(tuple(sorted((p.name, p.read_bytes()) for p in (tmp_path / str(seed)).iterdir())))
    assert (("kept", b"safe"),) in found
    assert (("kept", b"safe"), ("lost", b"")) in found
    assert (("lost", b"unsafe"),) in found
    assert {data for files in found for name, data in files if name == "kept"} == {b"safe"}
