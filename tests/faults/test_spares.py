"""A worker that waits for its request can be killed like any other process: the next stage gets another."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import psutil

from tests.conftest import Project
from tests.security.hostile import needs_mounts
from tests.waiting import wait_until

CONTENT = bytes(2 << 20)


@needs_mounts
def test_a_run_goes_on_after_a_spare_worker_was_killed(project: Project) -> None:
    big = project.write("big.bin", CONTENT)
    project.pipeline("""
        a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y.txt},
            with: {command: "echo begun; until test $(stat -c %h $INPUT_X) = 0; do :; done; echo a > $OUTPUT_Y"}}
        b: {uses: run.command, inputs: {x: "${{ stages.a.outputs.y }}"}, outputs: {y: y.txt},
            with: {command: cp $INPUT_X $OUTPUT_Y}}
    """)
    process = project.start("run")
    wait_until(lambda: any((project.folder / ".deploy-runner/runs").glob("*/logs/a.log")))
    (server,) = psutil.Process(process.pid).children()
    wait_until(lambda: len(spares(server)) == 1)
    (spare,) = spares(server)
    spare.send_signal(signal.SIGKILL)
    wait_until(lambda: spares(server) not in ([], [spare]))  # Another one is there.
    os.replace(project.write("new.bin", CONTENT), big)
    assert "2 ran" in process.communicate(timeout=60)[0]


def spares(server: psutil.Process) -> list[psutil.Process]:
    """Return the workers that run no stage."""
    found = []
    with suppress(psutil.NoSuchProcess):  # One ends meanwhile.
        for worker in server.children():
            below = worker.children(recursive=True)
            if below and not any("begun" in " ".join(one.cmdline()) for one in below):
                found.append(worker)
    return found
