"""A shared cache that fails, stalls or lies at any request: the run ends, and every artifact is right."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.faults.proxy import Fault
from tests.machines import SECRET, Bucket, Machines

LIMIT_S = 60
TIMEOUT = "0.5s"
EVERY = 1 << 30
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
TAKEN = (("ETag", '"x"'), ("Last-Modified", "Wed, 25 Nov 2026 10:00:00 GMT"))

KINDS: dict[str, Callable[[int], list[Fault]]] = {
    "500 once": lambda nth: [Fault(500, nth=nth)],
    "500 a few times": lambda nth: [Fault(500, nth=nth, times=6)],
    "500 from then on": lambda nth: [Fault(500, nth=nth, times=EVERY)],
    "403": lambda nth: [Fault(403, nth=nth, body=DENIED)],
    "404": lambda nth: [Fault(404, nth=nth)],
    "412": lambda nth: [Fault(412, nth=nth)],
    "reset": lambda nth: [Fault("reset", nth=nth, times=4)],
    "partial": lambda nth: [Fault("partial", nth=nth, times=4)],
    "lost answer": lambda nth: [Fault("commit_then_reset", nth=nth)],
    "truncated": lambda nth: [Fault("truncated", nth=nth, times=8)],
    "hangs": lambda nth: [Fault("hang", nth=nth)],
    "stalls": lambda nth: [Fault("stall", nth=nth)],
    "stalls from then on": lambda nth: [Fault("stall", nth=nth, times=EVERY)],
    "wrong bytes": lambda nth: [Fault("lie", nth=nth, alter=lambda body: bytes(len(body)))],
    "empty": lambda nth: [Fault("lie", nth=nth, alter=lambda body: b"")],
    "a gigabyte": lambda nth: [Fault("lie", nth=nth, headers=(("Content-Length", str(1 << 30)),))],
    "taken and lost": lambda nth: [Fault(200, nth=nth, headers=TAKEN)],
}
"""What goes wrong with the nth request, and what follows on it: retries don't always help."""


def ended(process: subprocess.Popen[str]) -> dict[str, dict[str, object]]:
    """Wait for a run with --json, for a limited time; return its stages."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise AssertionError("the run is stuck") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err, err
    stages: dict[str, dict[str, object]] = json.loads(out.splitlines()[-1])["stages"]
    return stages


def outputs(stages: dict[str, dict[str, object]]) -> dict[str, object]:
    return {name: stage["outputs"] for name, stage in stages.items()}


class Sweep:
    """Runs a pipeline with one fault at a time, from the first request to the last."""

    def __init__(self, machines: Machines, bucket: Bucket, stages: str) -> None:
        self._stages = stages
        self._machines = machines
        self._bucket = bucket
        self._count = count()
        self._made: list[tuple[str, bytes]] = []
        alone = self.machine()
        self.expected = outputs(ended(alone.start("run", "--json", DEPLOY_RUNNER_REMOTE="")))

    def machine(self) -> Project:
        """Return a new machine."""
        return self._machines.machine(f"machine-{next(self._count)}", self._stages, timeout=TIMEOUT)

    def remember(self) -> None:
        """Have each round begin with what is in the bucket now."""
        self._made = [(name, self._bucket.read(name)) for name in self._bucket.names()]

    def forget(self) -> None:
        """Begin a round."""
        self._bucket.disturb()
        self._bucket.remove("")
        for name, data in self._made:
            self._bucket.write(name, data)

    def run(self, kind: str, nths: Iterator[int]) -> int:
        """Let the nth request fail for every n; return how many there were."""
        for nth in nths:
            self.forget()
            self._bucket.disturb(*KINDS[kind](nth))
            stages = ended(self.machine().start("run", "--json"))
            assert outputs(stages) == self.expected, f"{kind}, request {nth}"
            last = not self._bucket.proxy.injected
            self._bucket.disturb()
            # What it left is right for another machine, with its bytes.
            after = ended(self.machine().start("run", "--force", "pipeline.yaml", "last", "--json"))
            assert outputs(after) == self.expected, f"after {kind}, request {nth}"
            if last:
                return nth
        return 0


def begin_with_records(sweep: Sweep, bucket: Bucket) -> None:
    """Have all be made but the last stage: a run reads two records, and downloads what that stage needs."""
    sweep.machine().run()
    for name in bucket.names("records"):
        if b'"uses":"run.command"' in bucket.read(name):
            bucket.remove(name)
    sweep.remember()


def begin_with_leases(sweep: Sweep, bucket: Bucket) -> None:
    """Have each action be leased by a machine that was killed."""
    sweep.machine().run()
    keys = [
        name.removeprefix("records/").removesuffix(".json").replace("/", "")
        for name in bucket.names("records")
    ]
    bucket.remove("")
    for key in keys:
        bucket.write(
            f"leases/{key}", json.dumps({"holder": "killed-1", "host": "h", "length_s": 0.1}).encode()
        )
    sweep.remember()


ONE = "last: {uses: text.upper, inputs: {text: in.txt}}"
TWO = """
first: {uses: text.join, inputs: {texts: {t: in.txt}}}
last: {uses: run.command, inputs: {d: "${{ stages.first.outputs.folder }}", t: "${{ stages.first.outputs.text }}"},
       outputs: {o: o}, with: {command: "cat $INPUT_D/sub/a.txt $INPUT_D/b.txt $INPUT_T > $OUTPUT_O"}}
"""
BEGIN: dict[str, tuple[str, Callable[[Sweep, Bucket], None]]] = {
    "a pushing run": (TWO, lambda sweep, bucket: None),
    "a reading run": (TWO, begin_with_records),
    "a waiting run": (ONE, begin_with_leases),
}


def prepared(machines: Machines, bucket: Bucket, begin: str) -> Sweep:
    stages, prepare = BEGIN[begin]
    sweep = Sweep(machines, bucket, stages)
    prepare(sweep, bucket)
    return sweep


@pytest.mark.parametrize(
    "begin",
    [pytest.param(begin, marks=() if begin == "a waiting run" else pytest.mark.slow) for begin in BEGIN],
)
def test_some_faults_at_some_requests_of_a_run_never_make_a_wrong_artifact(
    s3_machines: Machines, bucket: Bucket, begin: str
) -> None:
    sweep = prepared(s3_machines, bucket, begin)
    rng = random.Random(begin)
    for kind in rng.sample(list(KINDS), 3):
        sweep.run(kind, iter([rng.randint(1, 12)]))


@pytest.mark.faults
@pytest.mark.parametrize("begin", BEGIN)
@pytest.mark.parametrize("kind", KINDS)
def test_no_fault_at_any_request_of_a_run_makes_a_wrong_artifact(
    s3_machines: Machines, bucket: Bucket, kind: str, begin: str
) -> None:
    sweep = prepared(s3_machines, bucket, begin)
    assert sweep.run(kind, count(1)) > 5


@pytest.mark.parametrize("whose", ["of another key", "of another action"])
def test_a_remote_that_answers_with_the_record_of_another_is_not_believed(
    s3_machines: Machines, bucket: Bucket, whose: str
) -> None:
    """At every request for a record: one of the same action, which another key has signed, or another's."""
    sweep = Sweep(s3_machines, bucket, TWO)
    secret = "another secret of 32 characters or more" if whose == "of another key" else SECRET
    foreign = s3_machines.machine("foreign", TWO, secret=secret)
    if whose == "of another action":
        foreign.write("in.txt", "poison")
    foreign.run()
    poison = bucket.read(bucket.names("records")[0])
    bucket.remove("")
    bucket.disturb(Fault(200, "GET", "/records/", times=EVERY, body=poison, headers=TAKEN))
    assert outputs(ended(sweep.machine().start("run", "--json"))) == sweep.expected
    bucket.disturb()
    assert outputs(ended(sweep.machine().start("run", "--json"))) == sweep.expected


STAGES = (
    "\n".join(
        f"s{n}: {{uses: run.command, outputs: {{o: o}}, with: {{command: 'sleep 0.3; seq {n}000 > $OUTPUT_O'}}}}"
        for n in range(6)
    )
    + "\nlast: {uses: text.join, inputs: {texts: {a: '${{ stages.s1.outputs.o }}', b: '${{ stages.s5.outputs.o }}'}}}"
)
DRIVERS = 4


def rounds_with_kills(folder: Path, bucket: Bucket, rounds: int, seed: int) -> None:
    """Let four drivers share a remote, and kill some at random moments; those that end have made nothing twice."""
    rng = random.Random(seed)
    alone = Machines(folder / "alone", bucket).machine("alone", STAGES)
    expected = outputs(ended(alone.start("run", "--json", DEPLOY_RUNNER_REMOTE="")))
    for round_ in range(rounds):
        bucket.remove("")
        machines = Machines(folder / f"round-{round_}", bucket)
        projects = [machines.machine(f"driver-{n}", STAGES, timeout="3s") for n in range(DRIVERS)]
        runs = [project.start("run", "--json") for project in projects]
        for victim in rng.sample(range(DRIVERS), 2):
            try:
                runs[victim].wait(timeout=rng.uniform(0.3, 2.0))
            except subprocess.TimeoutExpired:
                os.killpg(runs[victim].pid, signal.SIGKILL)
                runs[victim].communicate()
                runs[victim] = projects[victim].start("run", "--json")
        results = [ended(run) for run in runs]
        for name in expected:
            states = sorted(str(result[name]["state"]) for result in results)
            assert states.count("ran") <= 1, f"round {round_}: {name}: {states}"
            assert set(states) <= {"ran", "hit"}
        assert all(outputs(result) == expected for result in results)


@pytest.mark.slow
def test_drivers_that_share_a_remote_make_each_action_once_whoever_is_killed(
    tmp_path: Path, bucket: Bucket
) -> None:
    rounds_with_kills(tmp_path, bucket, rounds=1, seed=1)


@pytest.mark.faults
def test_ten_rounds_of_four_drivers_with_kills(tmp_path: Path, bucket: Bucket) -> None:
    rounds_with_kills(tmp_path, bucket, rounds=10, seed=2)
