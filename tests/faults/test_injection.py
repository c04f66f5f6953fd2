"""Each system call that changes the disk fails or is the last: nothing bad is kept, the next run goes on.

The faults are injected by strace: the k-th call of a kind in the runner's own process returns an error,
or the process dies in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.faults.runs import assert_sound, orphans, prepare

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

WRITING = ("write", "rename", "openat", "fsync", "link", "unlink", "mkdir")


def traced(project: Project, call: str, fault: str, k: int) -> subprocess.CompletedProcess[str]:
    """Run with the k-th call of a kind replaced by a fault, in this process and its threads only."""
    command = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:{fault}:when={k}",
    ]
    done = subprocess.run(
        [*command, sys.executable, "-m", "deploy_runner", "run"],
        cwd=project.folder, env=project.env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, f"{call} {fault} {k}: {done.stderr}"
    return done


def calls_of(project: Project, call: str) -> list[int]:
    """Return the numbers of the calls of a kind in a whole run that concern the store's files."""
    log = project.folder / "strace.log"
    command = ["strace", "-qq", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={call}"]
    subprocess.run(
        [*command, sys.executable, "-m", "deploy_runner", "run"],
        cwd=project.folder, env=project.env, capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    lines = log.read_text(errors="replace").splitlines()
    log.unlink()
    return [number for number, line in enumerate(lines, 1) if ".deploy-runner/" in line]


def go_through(project: Project, faults: tuple[str, ...], step: int) -> int:
    """Inject each fault at every `step`-th call of each kind; return how many that were."""
    expected = prepare(project)
    home = project.folder / ".deploy-runner"
    injected = 0
    for call in WRITING:
        numbers = calls_of(project, call)
        shutil.rmtree(home)
        for k in numbers[::step]:
            for fault in faults:
                done = traced(project, call, fault, k)
                injected += 1
                assert_sound(home)
                if done.returncode > 0:
                    assert done.returncode in (1, 2), (
                        f"{call} {fault} {k}: exit {done.returncode} {done.stderr}"
                    )
                    assert (done.stdout + done.stderr).strip(), f"{call} {fault} {k}: no word of it"
                result = project.run()
                assert {n: v["outputs"] for n, v in result["stages"].items()} == expected, (
                    f"{call} {fault} {k}"
                )
                assert not orphans(home), f"{call} {fault} {k}"
                shutil.rmtree(home)
    print(f"{injected} faults {faults}")
    return injected


@pytest.mark.slow
def test_errors_and_death_at_some_calls(project: Project) -> None:
    assert go_through(project, ("error=ENOSPC", "signal=KILL"), step=40) > 5


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["error=EIO", "error=ENOSPC", "error=EMFILE", "signal=KILL"])
def test_errors_and_death_at_every_call(project: Project, fault: str) -> None:
    assert go_through(project, (fault,), step=1) > 50


@pytest.mark.faults
def test_fifty_sizes_of_a_disk_that_is_too_small(project: Project, tmp_path: Path) -> None:
    """Nothing bad is kept, and the run completes once there is room."""
    expected = prepare(project)
    home = tmp_path / "disk"
    home.mkdir()
    for kib in range(16, 16 + 50 * 12, 12):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(home)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs needs root")
        try:
            done = project.cli("run", exits=None, DEPLOY_RUNNER_HOME=str(home))
            assert done.returncode in (0, 1), f"{kib} KiB: {done.stderr}"
            assert_sound(home)
            subprocess.run(["mount", "-o", "remount,size=30m", str(home)], check=True)
            result = project.run(DEPLOY_RUNNER_HOME=str(home))
            assert {n: v["outputs"] for n, v in result["stages"].items()} == expected, f"{kib} KiB"
            assert not orphans(home), f"{kib} KiB"
        finally:
            subprocess.run(["umount", "-l", str(home)], check=True)
    assert os.path.ismount(home) is False
