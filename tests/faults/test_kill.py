"""SIGKILL at any moment: nothing damaged under a final name, and the next run needs no human."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import Project
from tests.faults.runs import assert_sound, orphans, prepare
from tests.waiting import wait_until


def kill_at_random(project: Project, count: int, seed: int) -> None:
    """Kill a run `count` times at random moments; now and then let one end, and compare."""
    expected, rng, killed = prepare(project), random.Random(seed), 0
    home = project.folder / ".deploy-runner"
    while killed < count:
        process = project.start("run")
        try:
            process.wait(timeout=rng.uniform(0.05, 0.8))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        finally:
            process.communicate()
        assert_sound(home)
        if process.returncode == 0 or killed % 5 == 0:
            result = project.run()
            assert {k: v["outputs"] for k, v in result["stages"].items()} == expected
            assert not orphans(home)
            subprocess.run(["rm", "-rf", str(home)], check=True)


def test_killed_runs_leave_nothing_damaged_and_the_next_run_goes_on(project: Project) -> None:
    kill_at_random(project, 10, seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
def test_five_hundred_killed_runs_never_need_a_human(project: Project, seed: int) -> None:
    kill_at_random(project, 100, seed=seed)


def test_no_worker_outlives_a_killed_runner(project: Project) -> None:
    command = f"sleep 977.{uuid4().int}"
    project.pipeline(f"slow: {{uses: run.command, with: {{command: '{command}'}}}}")
    process = project.start("run")
    wait_until(lambda: running(command))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not running(command))


def running(command: str) -> bool:
    done = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True)
    return any(
        line.split(None, 1)[1] == command for line in done.stdout.splitlines() if not line.startswith("Z")
    )


def test_a_read_only_store_is_one_sentence(project: Project, tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(home)], check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
        done = project.cli("run", exits=1, DEPLOY_RUNNER_HOME=str(home))
        assert "Read-only file system" in done.stderr
        assert "set DEPLOY_RUNNER_HOME to a folder that can be written" in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_full_disk_is_one_sentence_and_the_run_completes_once_there_is_room(
    project: Project, tmp_path: Path
) -> None:
    home = tmp_path / "small"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(home)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        project.pipeline("a: {uses: run.command, outputs: {o: o}, with: {command: 'seq 100000 > $OUTPUT_O'}}")
        done = project.cli("run", exits=1, DEPLOY_RUNNER_HOME=str(home))
        assert "No space left on device" in done.stdout + done.stderr or "exited" in done.stdout
        assert_sound(home)
        subprocess.run(["mount", "-o", "remount,size=30m", str(home)], check=True)
        assert project.run(DEPLOY_RUNNER_HOME=str(home))["ran"] == 1
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
