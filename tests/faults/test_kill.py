"""SIGKILL at any moment: nothing damaged under a final name, and the next run needs no human."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from deploy_runner.store.cas import Store
from tests.conftest import Project

STAGES = """
a: {uses: text.upper, inputs: {text: in.txt}}
b: {uses: run.command, inputs: {x: "${{ stages.a.outputs.text }}"}, outputs: {o: o, d: d/},
    with: {command: "seq 20000 > $OUTPUT_O; mkdir $OUTPUT_D; cat $INPUT_X > $OUTPUT_D/x; seq 9 > $OUTPUT_D/y"}}
c: {uses: text.join, inputs: {texts: {b: "${{ stages.b.outputs.o }}", a: "${{ stages.a.outputs.text }}"}}}
d: {uses: text.upper, inputs: {text: "${{ stages.c.outputs.text }}"}}
"""
"""Commands and Python stages, files and a folder."""


def prepare(project: Project) -> dict[str, object]:
    """Write the pipeline, run it once, return its outputs, and forget everything."""
    project.pipeline(STAGES)
    expected = {k: v["outputs"] for k, v in project.run()["stages"].items()}
    subprocess.run(["rm", "-rf", str(project.folder / ".deploy-runner")], check=True)
    return expected


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


KEPT = re.compile(
    r"cas/sha256/[0-9a-f]{2}/[0-9a-f]{62}|actions/[0-9a-f]{2}/[0-9a-f]{62}\.json|locks/[0-9a-f]{64}"
    r"|runs/[^/]+/(record\.json|report\.html|log\.jsonl|logs/\w+\.log)|(last|compiled)/[0-9a-f]{32}\.json"
    r"|secret|gc\.lock|counter(\.lock)?|stat\.sqlite(-wal|-shm|-journal)?"
)
"""Every file that a store keeps; anything else is an orphan."""


def orphans(home: Path) -> list[str]:
    """Return the files of a store that nothing would ever use or remove."""
    names = (p.relative_to(home).as_posix() for p in home.rglob("*") if not p.is_dir())
    return [name for name in names if not KEPT.fullmatch(name)]


def assert_sound(home: Path) -> None:
    if home.exists():
        report = Store(home).verify_all()
        assert report.ok, report


def test_killed_runs_leave_nothing_damaged_and_the_next_run_goes_on(project: Project) -> None:
    kill_at_random(project, 10, seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
def test_five_hundred_killed_runs_never_need_a_human(project: Project, seed: int) -> None:
    kill_at_random(project, 100, seed=seed)


def test_no_worker_outlives_a_killed_runner(project: Project) -> None:
    project.pipeline("slow: {uses: run.command, with: {command: 'sleep 977'}}")
    process = project.start("run")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("> slow"):
            break
    deadline = time.monotonic() + 20
    while not running("sleep 977") and time.monotonic() < deadline:
        os.sched_yield()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while running("sleep 977") and time.monotonic() < deadline:
        os.sched_yield()
    assert not running("sleep 977")


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
