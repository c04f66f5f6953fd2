"""Many runs on one store: each artifact is made once, a killed holder holds nobody up, gc takes nothing live."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from deploy_runner.store.cas import Store
from deploy_runner.store.verify import verify
from tests.conftest import Project
from tests.faults.runs import prepare

RUNS = 8


def ended(process: subprocess.Popen[str]) -> dict[str, dict[str, object]]:
    """Wait for a run with --json; return its stages."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out + err
    stages: dict[str, dict[str, object]] = json.loads(out.splitlines()[-1])["stages"]
    return stages


def test_eight_runs_make_each_artifact_once(project: Project) -> None:
    expected = prepare(project)
    for _ in range(2):
        runs = [ended(p) for p in [project.start("run", "--json") for _ in range(RUNS)]]
        for name in expected:
            states = sorted(str(run[name]["state"]) for run in runs)
            assert states.count("ran") <= 1, f"{name}: {states}"
            assert set(states) <= {"ran", "hit"}
            assert all(run[name]["outputs"] == expected[name] for run in runs)


def until(process: subprocess.Popen[str], said: str) -> list[str]:
    """Wait until a run says a line that begins so; return the lines up to that one."""
    output = process.stderr if "--json" in process.args else process.stdout  # type: ignore[operator]
    assert output is not None
    lines = []
    for line in output:
        lines.append(line)
        if line.startswith(said):
            return lines
    raise AssertionError("".join(lines))


def held_up_s(project: Project) -> float:
    """Kill a run that another one waits for; return how long the other stood still after that.

    What the stage does is a secret, which is not in its key: the holder sleeps in it, the waiter would not.
    A run asks for the locks of its stages in the order of the file, so that the waiter has been refused
    the first one's when it starts the second, and has nothing else to wait for when that has ended.
    """
    project.pipeline(
        """
        held: {uses: text.odd, with: {how: "${{ secrets.HOW }}"}}
        free: {uses: text.upper, inputs: {text: in.txt}}
        """
    )
    holder = project.start("run", "pipeline.yaml", "held", HOW="sleep")
    until(holder, "> held")
    waiter = project.start("run", "--json", HOW="well")
    assert not any("held" in line for line in until(waiter, "✓ free"))
    killed_s = time.monotonic()
    os.killpg(holder.pid, signal.SIGKILL)
    holder.communicate()
    stages = ended(waiter)
    took_s = time.monotonic() - killed_s
    assert {name: stage["state"] for name, stage in stages.items()} == {"held": "ran", "free": "ran"}
    return took_s - float(str(stages["held"]["seconds"]))


def test_a_waiter_goes_on_when_the_holder_is_killed(project: Project) -> None:
    held_up_s(project)


@pytest.mark.faults
def test_a_waiter_goes_on_within_a_second(project: Project) -> None:
    assert held_up_s(project) < 1.0


def race(project: Project, seconds: float) -> int:
    """Let eight loops of runs race with gc, verify, pin and get; return how many runs there were."""
    expected = prepare(project)
    until = time.monotonic() + seconds
    home = project.folder / ".deploy-runner"

    def runs(index: int) -> int:
        done = 0
        while time.monotonic() < until:
            suffix = f"stages.a.with.suffix={index}-{done % 3}" if done % 2 else "stages.a.with.suffix=x"
            result = ended(project.start("run", "--json", "--set", suffix))
            assert all(row["state"] in ("ran", "hit", "healed") for row in result.values())
            done += 1
        return done

    def collect() -> int:
        while time.monotonic() < until:
            done = project.cli("cache", "gc", "--keep-runs", "1", exits=None)
            assert done.returncode == 0 or "a run is using this store" in done.stderr
        return 0

    def look() -> int:
        """Use the store as a person does; what is pinned stays until it is not."""
        for index in count():
            if time.monotonic() >= until:
                return 0
            assert project.cli("cache", "verify").stdout.rstrip().endswith("all intact")
            pinned = project.cli("cache", "pin", exits=None).stdout.removeprefix("pinned ").strip()
            made = project.cli("get", "d", "--to", f"copy-{index}", exits=None)
            assert made.returncode == 0 or "is not up to date" in made.stderr
            if pinned:
                assert pinned in project.cli("show", "--run", pinned, "--json").stdout
                project.cli("cache", "unpin", "--run", pinned)
        return 0

    with ThreadPoolExecutor(RUNS + 2) as pool:
        futures = [pool.submit(runs, i) for i in range(RUNS)] + [pool.submit(collect), pool.submit(look)]
        total = sum(future.result() for future in futures)
    report = verify(Store(home))
    assert report.ok, report
    assert {k: v["outputs"] for k, v in project.run()["stages"].items()} == expected
    return total


@pytest.mark.slow
def test_gc_takes_nothing_that_a_run_needs(project: Project) -> None:
    assert race(project, 6) >= RUNS


@pytest.mark.faults
def test_gc_takes_nothing_in_a_minute_of_racing(project: Project) -> None:
    assert race(project, 60) >= RUNS
