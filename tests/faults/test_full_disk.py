"""A disk that is full, or read-only: one sentence with the path and what to do, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.faults.runs import assert_sound

FULL = "No space left on device (free some space and run again)"
STAGES = """
a: {uses: run.command, inputs: {b: big}, outputs: {o: o}, with: {command: "cat $INPUT_B $INPUT_B > $OUTPUT_O"}}
b: {uses: run.python, inputs: {b: big}, outputs: {o: o}, with: {function: "step.py:copy"}}
c: {uses: run.command, inputs: {b: big}, outputs: {o: o/}, with: {command: "mkdir $OUTPUT_O; split -b 9000 $INPUT_B $OUTPUT_O/x"}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


def leave(place: Path, kib: int) -> None:
    """Fill a disk but for some KiB."""
    found = os.statvfs(place)
    (place / "filler").write_bytes(bytes(found.f_bavail * found.f_bsize - kib * 1024))


@pytest.mark.parametrize(
    "free_kib", [pytest.param(kib, marks=() if kib == 200 else pytest.mark.slow) for kib in
                 (0, 4, 8, 16, 64, 150, 200, 300, 450, 700)]
)  # fmt: skip
def test_a_full_store_is_one_sentence_and_the_run_completes_once_there_is_room(
    project: Project, small: Path, free_kib: int
) -> None:
    project.write("big", os.urandom(100_000))
    project.write("step.py", "def copy(ctx, i, o):\n    o['o'].write_bytes(i['b'].read_bytes() * 3)\n")
    project.pipeline(STAGES)
    home = small / "home"
    leave(small, free_kib)
    done = project.cli("run", exits=1, DEPLOY_RUNNER_HOME=str(home))
    said = [line for line in (done.stdout + done.stderr).splitlines() if "No space left" in line]
    assert said
    for line in said:
        assert f"{home}/" in line
        assert "free some space" in line
    assert_sound(home)
    (small / "filler").unlink()
    remount(small, "size=30m")
    assert project.run(DEPLOY_RUNNER_HOME=str(home))["failed"] == 0


def test_get_writes_all_of_an_output_or_nothing(project: Project, small: Path) -> None:
    project.write("big", os.urandom(100_000))
    project.pipeline(STAGES.splitlines()[3])
    project.run()
    leave(small, 60)
    place = small / "got"
    done = project.cli("get", "c", "--to", str(place), exits=1)
    assert done.stderr == f"error: {place}: {FULL}\n"
    assert [path.name for path in small.iterdir()] == ["filler"]
    remount(small, "ro")
    for path in (place, place / "deeper"):
        done = project.cli("get", "c", "--to", str(path), exits=1)
        assert done.stderr == f"error: {path}: Read-only file system (choose a folder that can be written)\n"


def test_a_read_only_store_is_one_sentence(project: Project, small: Path) -> None:
    remount(small, "ro")
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    done = project.cli("run", exits=1, DEPLOY_RUNNER_HOME=str(small))
    assert "Read-only file system (set DEPLOY_RUNNER_HOME to a folder that can be written)" in done.stderr
