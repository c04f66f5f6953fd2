"""Nodes and drivers killed at random: all ends right, and every action has the outputs of a local run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.machines import Bucket
from tests.ray.conftest import SECRET, RayProject

WIDE = """
first: {uses: text.upper, inputs: {text: in.txt}, resources: {cpu: 2}}
wide: {uses: run.command, inputs: {x: "${{ stages.first.outputs.text }}"}, outputs: {o: o, d: d/}, resources: {cpu: 2},
       matrix: {n: [1, 2, 3, 4, 5, 6, 7, 8]},
       with: {command: "sleep 0.${{ matrix.n }}; cp $INPUT_X $OUTPUT_O; mkdir $OUTPUT_D; echo ${{ matrix.n }} > $OUTPUT_D/n"}}
last: {uses: text.join, inputs: {texts: "${{ stages.wide.outputs.o }}"}, resources: {cpu: 2}}
"""


def outputs(result: dict[str, Any]) -> dict[str, Any]:
    return {id_: stage["outputs"] for id_, stage in result["stages"].items()}


@pytest.fixture
def wide(project: RayProject) -> RayProject:
    """Eight stages side by side for nodes of two CPUs. A killed driver's lease ends after three seconds."""
    project.head = project.head.replace("push: true", "push: true, timeout: 1s")
    project.pipeline(WIDE)
    return project


@pytest.mark.faults
def test_nodes_killed_at_random_change_no_output(wide: RayProject, tmp_path: Path) -> None:
    rng, expected = random.Random(7), outputs(wide.alike(tmp_path).run())
    wide.cluster.add("spare-0", cpus=2)
    for turn in range(20):
        wide.cluster.add(f"spare-{turn + 1}", cpus=2)
        folder = tmp_path / f"turn-{turn}"
        copy = wide.alike(folder)
        process = copy.start("run", "--json", *copy.ray)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=rng.uniform(0.5, 8))
        wide.cluster.kill(f"spare-{turn}")
        out, err = process.communicate(timeout=180)
        assert process.returncode == 0, out + err
        assert outputs(copy.run()) == expected


@pytest.mark.faults
def test_drivers_killed_at_random_need_nobody(wide: RayProject, tmp_path: Path) -> None:
    rng, expected = random.Random(8), outputs(wide.alike(tmp_path).run())
    wide.cluster.add("big", cpus=2)
    try:
        for turn in range(20):
            copy = wide.alike(tmp_path / f"turn-{turn}")
            process = copy.start("run", *copy.ray)
            try:
                process.wait(timeout=rng.uniform(0.5, 8))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            assert outputs(copy.run(*copy.ray)) == expected
    finally:
        wide.cluster.remove("big")


@pytest.mark.faults
def test_four_drivers_on_one_bucket_make_each_action_once(
    wide: RayProject, bucket: Bucket, tmp_path: Path
) -> None:
    rng, expected = random.Random(9), outputs(wide.alike(tmp_path).run())
    for name in ("s3-a", "s3-b"):
        wide.cluster.add(name, cpus=2, DEPLOY_RUNNER_CACHE_KEY=SECRET, **bucket.env)
    try:
        for turn in range(10):
            bucket.remove("")
            drivers = [wide.alike(tmp_path / f"turn-{turn}-{number}") for number in range(4)]
            for driver in drivers:
                driver.env |= bucket.env
                driver.head = f"cache: {{remote: '{bucket.url}', push: true, timeout: 1s}}\n"
                driver.pipeline(WIDE.replace("sleep 0.", f": {turn}; sleep 0."))
            processes = [driver.start("run", "--json", *driver.ray) for driver in drivers]
            with contextlib.suppress(subprocess.TimeoutExpired):
                processes[0].wait(timeout=rng.uniform(2, 10))
            os.killpg(processes[0].pid, signal.SIGKILL)
            processes[0].communicate()
            ran: list[str] = []
            for process in processes[1:]:
                out, err = process.communicate(timeout=180)
                assert process.returncode == 0, out + err
                result = json.loads(out.splitlines()[-1])
                ran += [id_ for id_, stage in result["stages"].items() if stage["state"] == "ran"]
                assert outputs(result) == expected
            assert len(ran) == len(set(ran))
            assert outputs(drivers[0].run(*drivers[0].ray)) == expected
    finally:
        for name in ("s3-a", "s3-b"):
            wide.cluster.remove(name)
