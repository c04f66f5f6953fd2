"""However a run, a stage or a node ends: nothing is left running, and the next run continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from uuid import uuid4

import pytest

from tests.ray.conftest import RayProject
from tests.waiting import wait_until


def running(text: str) -> list[int]:
    """Return the ids of the processes whose command line is this."""
    done = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in done.stdout.splitlines())
    return [int(pid) for pid, stat, args in rows if args == text and not stat.startswith("Z")]


def home_of(pid: int, project: RayProject, *names: str) -> str:
    """Return which of these nodes a worker's process belongs to: its ancestors have the node's home."""
    while pid > 1:
        for name in names:
            if pid in project.cluster.processes(name):
                return name
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    raise AssertionError(names)


@pytest.mark.slow
def test_lines_come_while_a_stage_runs_and_ctrl_c_ends_it(project: RayProject) -> None:
    command = f"sleep 977.{uuid4().int}"
    project.pipeline(
        f"""
        slow: {{uses: run.command, with: {{command: 'echo begun; {command}'}}}}
        queued: {{uses: run.command, with: {{command: 'sleep 1; {command}'}}, resources: {{custom: {{one: 1}}}}}}
        """
    )
    process = project.start("run", "--log", *project.ray)
    assert process.stdout is not None
    while "slow: begun" not in (line := process.stdout.readline()):
        assert line
    wait_until(lambda: bool(running(command)))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert not running(command)


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_running(project: RayProject) -> None:
    command = f"sleep 977.{uuid4().int}"
    project.pipeline(f"slow: {{uses: run.command, with: {{command: '{command}'}}}}")
    process = project.start("run", *project.ray)
    wait_until(lambda: bool(running(command)))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not running(command))


@pytest.mark.slow
def test_the_actions_of_a_dead_node_run_again_on_another(project: RayProject) -> None:
    command = f"sleep 3.{uuid4().int}"
    names = ("big-a", "big-b")
    for name in names:
        project.cluster.add(name, cpus=2)
    try:
        project.pipeline(
            f"slow: {{uses: run.command, outputs: {{o: o}}, with: {{command: 'echo begun; {command}; echo done > $OUTPUT_O'}}, resources: {{cpu: 2}}}}"
        )
        process = project.start("run", "--json", *project.ray)
        wait_until(lambda: bool(running(command)))
        killed = home_of(running(command)[0], project, *names)
        project.cluster.kill(killed)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert project.output("slow") == b"done\n"
    finally:
        for name in names:
            project.cluster.remove(name)


@pytest.mark.slow
def test_limits_hold_on_the_nodes_and_failures_are_told_as_here(project: RayProject) -> None:
    project.write(
        "code.py",
        """
        def greedy(ctx, inputs, outputs):
            held = bytearray(2 << 30)

        def broken(ctx, inputs, outputs):
            raise ValueError("not this way")
        """,
    )
    project.pipeline(
        """
        slow: {uses: run.command, with: {command: "sleep 60"}, timeout: 1s}
        greedy: {uses: run.python, with: {function: "code.py:greedy"}, outputs: {o: o}, resources: {memory: 100MiB}}
        broken: {uses: run.python, with: {function: "code.py:broken"}, outputs: {o: o}}
        gate: {uses: text.odd, with: {how: gate}}
        killed: {uses: text.odd, with: {how: kill}}
        nothing: {uses: text.odd, with: {how: nothing}}
        after: {uses: text.upper, inputs: {text: "${{ stages.gate.outputs.text }}"}}
        """
    )
    there = project.run(*project.ray, exits=1)["stages"]
    here = project.alike(project.folder.parent / "here").run(exits=1)["stages"]
    assert there["slow"]["error"] == "timed out after 1 s (raise `timeout:`, or make the stage faster)"
    assert there["broken"]["error"].startswith("ValueError: not this way (code.py:5)")
    assert {k: (v["state"], v.get("error")) for k, v in there.items()} == {
        k: (v["state"], v.get("error")) for k, v in here.items()
    }


@pytest.mark.slow
def test_a_node_with_other_packages_is_named_with_the_differences(project: RayProject) -> None:
    packages = project.cluster.folder / "packages"
    (packages / "numpy-0.0.1.dist-info").mkdir(parents=True)
    project.cluster.add("odd", PYTHONPATH=str(packages))
    try:
        project.write("code.py", "import numpy\n\ndef run(ctx, inputs, outputs): pass\n")
        project.pipeline(
            "a: {uses: run.python, with: {function: 'code.py:run'}, outputs: {o: o}, resources: {custom: {odd: 1}}}"
        )
        error = project.run(*project.ray, exits=1)["stages"]["a"]["error"]
        assert " has numpy 0.0.1 where the key has " in error
        assert error.startswith("the node ")
        assert error.endswith("(install the same packages on every node, e.g. by one container image)")
    finally:
        project.cluster.remove("odd")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "ray://127.0.0.1:{port}",
            "no Ray cluster answers at ray://127.0.0.1:{port}: Connection refused (check --ray-address)",
        ),
        (
            "127.0.0.1:{port}",
            "no Ray cluster answers at 127.0.0.1:{port}: Connection refused (check --ray-address)",
        ),
        ("ray://:1", "'ray://:1' is not the address of a Ray cluster (use ray://HOST:10001)"),
    ],
)
def test_a_wrong_address_is_one_sentence(
    project: RayProject, address: str, said: str, free_port: int
) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    done = project.cli("run", "--executor", "ray", "--ray-address", address.format(port=free_port), exits=2)
    assert done.stderr == f"error: {said.format(port=free_port)}\n"
    assert not done.stdout


def test_a_cluster_without_a_shared_cache_is_one_sentence(project: RayProject) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    done = project.cli("run", *project.ray, exits=2, DEPLOY_RUNNER_REMOTE="")
    assert done.stderr == (
        "error: a Ray cluster needs a shared cache that may be written "
        "(add `cache: {remote: s3://bucket/prefix, push: true}`)\n"
    )


@pytest.mark.slow
def test_another_version_of_ray_is_one_sentence(project: RayProject) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    program = (
        "import ray, sys; ray.__version__ = '2.1.0'; from deploy_runner.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", *project.ray], cwd=project.folder, env=project.env,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: the Ray cluster at {project.cluster.address} has Ray ")
    assert ", this machine Ray 2.1.0 and Python " in done.stderr
    assert done.stderr.endswith("(install the same versions)\n")
