"""What happens while bytes are on their way: interruptions, other runs on the same store, progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy_runner.store.stat import StatMemo
from tests.conftest import Project
from tests.faults.proxy import Fault
from tests.machines import Bucket, Machines, Share
from tests.waiting import wait_until

EVERY = 1 << 30
BIG = """
big: {uses: run.command, outputs: {o: o}, with: {command: "head -c 12000000 /dev/zero > $OUTPUT_O"}}
size: {uses: run.command, inputs: {b: "${{ stages.big.outputs.o }}"}, outputs: {o: o},
       with: {command: "wc -c < $INPUT_B > $OUTPUT_O"}}
"""


def interrupted(project: Project, bucket: Bucket, asked: str, number: int) -> str:
    """Start a run, interrupt it when a request that matches has come, and return what it said."""
    run = project.start("run")
    wait_until(lambda: any(f"{r.method} {r.path}".startswith(asked.split("*")[0]) and asked.split("*")[1] in r.path
                           for r in bucket.asked()))  # fmt: skip
    os.kill(run.pid, number)
    try:
        out, err = run.communicate(timeout=30)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert "Traceback" not in out + err, out + err
    assert run.returncode == 130, out + err
    return out + err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_upload_is_interrupted_and_nothing_is_lost(
    s3_machines: Machines, bucket: Bucket, number: int
) -> None:
    first = s3_machines.machine("first", BIG)
    bucket.disturb(Fault("stall", "PUT", "/objects/", times=EVERY))
    interrupted(first, bucket, "PUT*/objects/", number)
    bucket.disturb()
    states = first.states()
    assert states["big"] == "hit"
    assert json.loads(first.cli("show", "--run", "1", "--json").stdout)["exit_code"] == 130
    assert not any(path for path in (first.folder / ".deploy-runner/tmp").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_download_that_stalls_is_interrupted(s3_machines: Machines, bucket: Bucket, number: int) -> None:
    s3_machines.machine("first", BIG).run()
    second = s3_machines.machine("second", BIG.replace("wc -c", "true; wc -c"), timeout="4s")
    bucket.disturb(Fault("hang", "GET", "/objects/", times=EVERY))
    said = interrupted(second, bucket, "GET*/objects/", number)
    assert "1 interrupted" in said
    assert bucket.names("leases") == bucket.names("holders") == []
    assert not any(path for path in (second.folder / ".deploy-runner/tmp").iterdir())
    bucket.disturb()
    assert second.states() == {"big": "hit", "size": "ran"}


def test_a_run_on_the_same_store_does_not_wait_for_an_upload(s3_machines: Machines, bucket: Bucket) -> None:
    """What is made is here: no other machine has to have it first."""
    stages = "held: {uses: run.command, outputs: {o: o}, with: {command: 'sleep 1; echo > $OUTPUT_O'}}"
    first = s3_machines.machine("first", stages, timeout="60s")
    bucket.disturb(Fault("stall", "PUT", "/objects/", times=EVERY))
    run = first.start("run")
    try:
        wait_until(lambda: bool(bucket.asked("PUT", "leases")))
        done = first.cli("run")
        assert "= held  hit" in done.stdout
        assert "another machine" not in done.stdout
        assert run.poll() is None
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


API = """
import json, sys
from deploy_runner import api
from deploy_runner.types import RunOptions
def main():
    pipeline = api.load("pipeline.yaml")
    for line in sys.stdin:
        events = []
        record = api.run(pipeline, on_event=events.append, options=RunOptions())
        states = {name: stage["state"] for name, stage in record.stages.items()}
        print(json.dumps([states, [[e.kind, e.text, e.fraction] for e in events]]), flush=True)
main()
"""


class Session:
    """Runs of one process, with one pipeline."""

    def __init__(self, project: Project) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", API], cwd=project.folder, env=project.env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self) -> tuple[dict[str, str], list[tuple[str, str, float]]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        states, events = json.loads(self.process.stdout.readline())
        return states, [tuple(event) for event in events]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


def test_a_later_run_of_a_process_uses_a_remote_that_works_again(
    s3_machines: Machines, bucket: Bucket
) -> None:
    first, second = s3_machines.machine("first", BIG), s3_machines.machine("second", BIG)
    bucket.disturb(Fault("reset", times=EVERY))
    with Session(second) as session:
        states, events = session.run()
        assert states == {"big": "ran", "size": "ran"}
        assert len([text for kind, text, _ in events if kind == "run-note"]) == 1
        bucket.disturb()
        subprocess.run(["rm", "-rf", second.folder / ".deploy-runner/actions"], check=True)
        first.run()
        states, events = session.run()
        assert states == {"big": "hit", "size": "hit"}
        assert not [text for kind, text, _ in events if kind == "run-note"]


def test_inputs_that_arrive_are_progress_of_their_stage(s3_machines: Machines, bucket: Bucket) -> None:
    s3_machines.machine("first", BIG).run()
    second = s3_machines.machine("second", BIG.replace("wc -c", "true; wc -c"))
    bucket.disturb(Fault("throttled", "GET", "/objects/", bytes_per_s=6e6, times=EVERY))
    with Session(second) as session:
        states, events = session.run()
    assert states == {"big": "hit", "size": "ran"}
    told = [(text, fraction) for kind, text, fraction in events if kind == "stage-progress"]
    assert told
    assert all(
        text.startswith("inputs: ") and text.endswith(" of 11 MiB from the shared cache") for text, _ in told
    )
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    assert 0 < told[-1][1] <= 1


def test_a_memo_is_shared_by_threads(tmp_path: Path) -> None:
    """Transfers verify what has arrived while the run stores what it has hashed."""
    memo = StatMemo(str(tmp_path / "memo.sqlite"), lambda: bytes(32))
    state = (1, 1, 1, 1, 1)
    names = [f"file {n}" for n in range(4000)]
    remembering = threading.Event()

    def remember(start: int) -> None:
        for name in names[start::4]:
            memo.remember(name, state, "d" * 64)
            remembering.set()
            assert memo.lookup(name, state) == "d" * 64

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            tasks = [pool.submit(remember, start) for start in range(4)]
            remembering.wait()
            while not all(task.done() for task in tasks):
                memo.flush()
            for task in tasks:
                task.result()
    finally:
        sys.setswitchinterval(interval_s)
    memo.close()
    again = StatMemo(str(tmp_path / "memo.sqlite"), lambda: bytes(32))
    assert {again.lookup(name, state) for name in names} == {"d" * 64}
    again.close()


def test_a_folder_as_remote_needs_no_server(project: Project, tmp_path: Path) -> None:
    """A name with spaces, and one outside ASCII."""
    share = Share(tmp_path / "a share" / "größe")
    project.pipeline(
        "a: {uses: text.upper, inputs: {text: in.txt}}",
        head=f"cache: {{remote: '{share.url}', push: true}}\n",
    )
    project.env["DEPLOY_RUNNER_CACHE_KEY"] = "s" * 40
    assert project.states() == {"a": "ran"}
    assert len(share.names("records")) == 1
