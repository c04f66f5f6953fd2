"""Once in the world: machines wait for each other, and for nobody who is dead."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Project
from tests.faults.proxy import Fault
from tests.machines import Bucket, Machines, public_key, quickly_in_s3
from tests.waiting import wait_until

HELD = """
held: {uses: text.odd, with: {how: "${{ secrets.HOW }}", path: "${{ secrets.SECONDS }}"}}
"""
"""What the stage does is not in its key: it can take long on one machine and be quick on another."""

WELL = {"HOW": "well", "SECONDS": "0.000001"}
FOR_EVER = {"HOW": "sleep-child", "SECONDS": "977.000001"}
WAITS = "held: another machine is making it\n"
EVERY = 1 << 30


def lasts(seconds: float) -> dict[str, str]:
    return {"HOW": "sleep-child", "SECONDS": f"{seconds:f}"}


class Running:
    """A run, read line by line."""

    def __init__(self, project: Project, *args: str, **env: str) -> None:
        self.process = project.start("run", *args, **env)
        self._lines: list[str] = []

    def until(self, said: str) -> None:
        """Wait until the run says a line that begins so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)
            if line.startswith(said):
                return
        raise AssertionError("".join(self._lines))

    def ended(self, *, exits: int = 0, limit_s: float = 60) -> str:
        """Wait until the run has ended; return all that it said."""
        out, err = self.process.communicate(timeout=limit_s)
        said = "".join(self._lines) + out + err
        assert self.process.returncode == exits, said
        assert "Traceback" not in said, said
        return said


@contextmanager
def running(project: Project, *args: str, **env: str) -> Iterator[Running]:
    run = Running(project, *args, **env)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.communicate()


def made_in(said: str) -> list[str]:
    return re.findall(r"^✓ (\w+) ", said, re.MULTILINE)


def test_machines_that_start_together_make_each_action_once(machines: Machines) -> None:
    stages = "\n".join(
        f"s{n}: {{uses: run.command, outputs: {{o: o}}, with: {{command: 'sleep 0.2; echo {n} > $OUTPUT_O'}}}}"
        for n in range(6)
    )
    projects = [machines.machine(name, stages, timeout="10s") for name in ("first", "second", "third")]
    runs = [project.start("run", "--json") for project in projects]
    results = []
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, out + err
        results.append(json.loads(out.splitlines()[-1])["stages"])
    for n in range(6):
        states = sorted(result[f"s{n}"]["state"] for result in results)
        assert states == ["hit", "hit", "ran"]
        assert len({json.dumps(result[f"s{n}"]["outputs"]) for result in results}) == 1
    assert machines.remote.names("leases") == machines.remote.names("holders") == []


@quickly_in_s3
@pytest.mark.parametrize("push", [True, False], ids=["writer", "reader"])
def test_a_machine_waits_for_another_and_has_a_hit(machines: Machines, push: bool) -> None:
    first = machines.machine("first", HELD, timeout="10s")
    second = machines.machine("second", HELD, timeout="10s", push=push, keys=[public_key()])
    with running(first, **lasts(2)) as holder:
        holder.until("> held")
        with running(second, **FOR_EVER) as waiter:
            waiter.until(WAITS)
            assert made_in(holder.ended()) == ["held"]
            said = waiter.ended()
    assert made_in(said) == []
    assert "= held  hit" in said
    assert said.count(WAITS) == 1


@quickly_in_s3
@pytest.mark.parametrize("push", [True, False], ids=["writer", "reader"])
def test_a_killed_holder_is_waited_for_no_longer_than_its_lease(machines: Machines, push: bool) -> None:
    first = machines.machine("first", HELD, timeout="1s")
    second = machines.machine("second", HELD, timeout="1s", push=push)
    with running(first, **FOR_EVER) as holder:
        holder.until("> held")
        with running(second, **WELL) as waiter:
            waiter.until(WAITS)
            os.killpg(holder.process.pid, signal.SIGKILL)
            assert made_in(waiter.ended()) == ["held"]


def test_an_interrupted_holder_frees_at_once(machines: Machines) -> None:
    """Its lease would last for minutes."""
    first, second = (machines.machine(name, HELD, timeout="60s") for name in ("first", "second"))
    with running(first, **FOR_EVER) as holder:
        holder.until("> held")
        with running(second, **WELL) as waiter:
            waiter.until(WAITS)
            os.kill(holder.process.pid, signal.SIGINT)
            holder.ended(exits=130)
            assert made_in(waiter.ended()) == ["held"]


def test_a_holder_that_fails_frees_at_once(machines: Machines) -> None:
    first, second = (machines.machine(name, HELD, timeout="60s") for name in ("first", "second"))
    first.cli("run", exits=1, HOW="fail", SECONDS="0.000001")
    assert machines.remote.names() == []
    assert second.states(**WELL) == {"held": "ran"}


@quickly_in_s3
def test_a_stopped_holder_is_taken_over_and_does_no_harm_when_it_continues(machines: Machines) -> None:
    """Its own lease is another's by then, and stays."""
    first, second, third = (machines.machine(n, HELD, timeout="1s") for n in ("first", "second", "third"))
    with running(first, **lasts(1)) as holder:
        holder.until("> held")
        os.kill(holder.process.pid, signal.SIGSTOP)
        with running(second, **FOR_EVER) as other:
            other.until(WAITS)
            other.until("> held")
            os.kill(holder.process.pid, signal.SIGCONT)
            assert made_in(holder.ended()) == ["held"]
            assert len(machines.remote.names("leases")) == 1
            assert third.states(**WELL) == {"held": "hit"}


@quickly_in_s3
def test_a_waiters_time_limit_is_not_the_holders(machines: Machines) -> None:
    first, second = (
        machines.machine("first", HELD, timeout="30s"),
        machines.machine("second", HELD, timeout="0.5s"),
    )
    with running(first, **lasts(4)) as holder:
        holder.until("> held")
        assert second.states(**FOR_EVER) == {"held": "hit"}
        holder.ended()


def test_no_more_is_claimed_than_can_start(machines: Machines) -> None:
    stages = "\n".join(
        HELD.strip().replace("held", f"held{n}").replace("{how", f"{{secret: '{n}', how") for n in range(5)
    )
    with running(machines.machine("first", stages), "--cpu", "1", **FOR_EVER) as holder:
        holder.until("> held0")
        assert len(machines.remote.names("leases")) == 1
        # The others are free for another machine.
        done = machines.machine("second", stages).run("pipeline.yaml", "held3", "held4", **WELL)
        assert done["ran"] == 2


def keys_of(project: Project, **env: str) -> list[str]:
    return [stage["key"] for stage in project.run(**env)["stages"].values()]


def forget(project: Project) -> None:
    subprocess.run(["rm", "-rf", str(project.folder / ".deploy-runner")], check=True)


@quickly_in_s3
@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"holder": "../../x", "host": "h", "length_s": 1e99}', b"\xff[1"]
)
def test_a_lease_that_nobody_holds_is_taken_over(machines: Machines, content: bytes) -> None:
    first = machines.machine("first", HELD, timeout="0.3s")
    (key,) = keys_of(first, **WELL)
    machines.remote.remove("records")
    forget(first)
    machines.remote.write(f"leases/{key}", content)
    done = first.run(**WELL)
    assert done["ran"] == 1
    assert machines.remote.names("leases") == []


@pytest.mark.parametrize("status", [404, 409, 412])
@pytest.mark.parametrize("method", ["GET", "PUT", "GET|PUT"])
def test_a_remote_that_can_not_lease_delays_nobody(
    s3_machines: Machines, bucket: Bucket, method: str, status: int
) -> None:
    first = s3_machines.machine("first", HELD, timeout="1s")
    bucket.disturb(Fault(status, method, "/(leases|holders)/", times=EVERY))
    assert first.states(**WELL) == {"held": "ran"}


@pytest.mark.parametrize("nth", [1, 2])
def test_a_lost_answer_to_a_lease_is_not_waited_for(s3_machines: Machines, bucket: Bucket, nth: int) -> None:
    """The lease is written, and its holder doesn't know."""
    stages = HELD + HELD.replace("held", "other").replace("{how", "{secret: '1', how")
    first = s3_machines.machine("first", stages, timeout="60s")
    bucket.disturb(Fault("commit_then_reset", "PUT", "/leases/", nth=nth, times=1))
    with running(first, **WELL) as run:
        assert sorted(made_in(run.ended())) == ["held", "other"]


def test_a_lease_that_can_not_be_removed_holds_nobody_up_once_the_record_is_there(
    s3_machines: Machines, bucket: Bucket
) -> None:
    after = "after: {uses: text.odd, needs: [held], with: {secret: '1', how: '${{ secrets.LATER }}', path: '977'}}"
    first = s3_machines.machine("first", HELD + after, timeout="20s")
    second = s3_machines.machine("second", HELD + after, timeout="20s")
    bucket.disturb(Fault(403, "DELETE|POST", times=EVERY))
    with running(first, LATER="sleep-child", **lasts(2)) as holder:
        holder.until("> held")
        with running(second, "pipeline.yaml", "held", LATER="well", **FOR_EVER) as waiter:
            waiter.until(WAITS)
            assert "= held   hit" in waiter.ended()
            assert holder.process.poll() is None


@quickly_in_s3
def test_a_killed_machine_that_comes_back_waits_for_its_own_lease_only(machines: Machines) -> None:
    first = machines.machine("first", HELD, timeout="1s")
    with running(first, **FOR_EVER) as holder:
        holder.until("> held")
        os.killpg(holder.process.pid, signal.SIGKILL)
        wait_until(lambda: holder.process.poll() is not None)
    assert first.states(**WELL) == {"held": "ran"}
