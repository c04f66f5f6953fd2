"""SIGKILL at any moment: nothing damaged under a final name, and the next run needs no human."""

from __future__ import annotations

import os
import random
import signal
import subprocess
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
