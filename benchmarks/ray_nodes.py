"""Stages on a Ray cluster beside bare Ray tasks: `python -m benchmarks.ray_nodes [--quick]`.

Eight nodes of one CPU on this machine, everything warm, one shared cache in a folder. The rounds of all
contenders are interleaved; figures are medians.

- 64 stages of `sleep 1` beside 64 tasks that sleep.
- 500 stages that print a word beside 500 tasks that run the same command in the same sandboxed worker, from
  a fork server that is warm: the same isolation, without inputs, outputs, keys and cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deploy_runner
from deploy_runner.types import RunOptions

NODES = 8
SLEEPS, TRIVIAL = 64, 500
LEAST_SPEEDUP, MOST_MS, MOST_RATIO = 6.5, 60.0, 2.0


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[Any]:
    """Start a head without CPUs and nodes with one, connect to it, and yield Ray."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    import logging

    import ray
    from ray.cluster_utils import Cluster

    nodes_of: Any = Cluster
    made = nodes_of(
        initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        for number in range(nodes):
            home = {"DEPLOY_RUNNER_HOME": str(folder / f"node-{number}")}
            made.add_node(num_cpus=1, env_vars=home, object_store_memory=80_000_000, wait=False)
        made.wait_for_nodes()
        ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield ray
    finally:
        disconnect: Any = ray.shutdown
        disconnect()
        made.shutdown()


def stages(folder: Path, address: str, name: str, count: int, command: str) -> Callable[[], float]:
    """Return what runs so many stages on the cluster and returns its seconds; none is ever a hit."""
    place, turn = folder / name, iter(range(10**6))
    place.mkdir()
    remote = folder / "remote"
    remote.mkdir(exist_ok=True)

    def run() -> float:
        word = next(turn)
        text = f"{command}; echo {word}-%d > $OUTPUT_O"
        rows = [
            f"  s{n}: {{uses: run.command, outputs: {{o: o}}, with: {{command: '{text % n}'}}}}"
            for n in range(count)
        ]
        head = f"version: 1\nname: {name}\ncache: {{remote: 'file://{remote}', push: true}}\nstages:\n"
        (place / "pipeline.yaml").write_text(head + "\n".join(rows) + "\n")
        pipeline = deploy_runner.load(place / "pipeline.yaml")
        options = RunOptions(executor="ray", ray_address=address)
        started = time.perf_counter()
        record = deploy_runner.run(pipeline, options=options)
        seconds = time.perf_counter() - started
        assert record.exit_code == 0
        return seconds

    return run


def sleeping_tasks(ray: Any, count: int) -> Callable[[], float]:
    """Return what runs so many bare tasks that sleep."""
    task = ray.remote(num_cpus=1)(lambda: time.sleep(1))

    def run() -> float:
        started = time.perf_counter()
        ray.get([task.remote() for _ in range(count)])
        return time.perf_counter() - started

    return run


def isolated_tasks(ray: Any, count: int) -> Callable[[], float]:
    """Return what runs so many tasks, each a command in a sandboxed worker of a warm fork server."""
    task = ray.remote(num_cpus=1)(isolated)

    def run() -> float:
        started = time.perf_counter()
        assert ray.get([task.remote(f"echo {n} > $OUTPUT_O") for n in range(count)]) == [0] * count
        return time.perf_counter() - started

    return run


_server: list[Any] = []


def isolated(command: str) -> int:
    """Run a command as a stage's worker does, and return its status."""
    import shutil

    from deploy_runner.engine.execute.fork import ForkServer

    if not _server:
        _server.append(ForkServer(threads=1))
        _server[0].preload(["deploy_runner.stages.run.command"], home=tempfile.mkdtemp())
    folder = tempfile.mkdtemp(prefix="isolated-")
    os.mkdir(f"{folder}/work")
    request = {
        "action": "a", "stage": "s", "module": "deploy_runner.stages.run.command", "class_name": "RunCommand",
        "stage_dir": "", "params": {"command": command}, "inputs": [],
        "outputs": {"o": ["o", "file", False]}, "work": f"{folder}/work", "result": f"{folder}/result.json",
        "env": {"PATH": os.environ["PATH"]}, "declared_env": {}, "seed": 1, "threads": 1, "trust": False,
        "matrix": {}, "target": {}, "secrets": {}, "lineage": {}, "digests": {}, "run": "", "commit": "",
        "code": {}, "packages": {}, "project": folder, "stores": [], "user_home": "", "network": False,
        "readable": [], "devices": [], "memory_bytes": 0, "require_sandbox": False,
    }  # fmt: skip
    log = os.open(os.devnull, os.O_WRONLY)
    _server[0].spawn(request, log)
    os.close(log)
    while True:
        for answer in _server[0].answers():
            if answer["event"] == "exited":
                made = Path(folder, "work/outputs/o").read_bytes()
                shutil.rmtree(folder)
                return int(answer["status"]) if made else 1


def warm(ray: Any, nodes: int) -> None:
    """Have every node start its worker process."""
    task = ray.remote(num_cpus=1)(lambda: time.sleep(0.5))
    for _ in range(3):
        ray.get([task.remote() for _ in range(nodes)])


def main() -> int:
    """Measure, print, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two nodes and few stages: a smoke run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    nodes, sleeps, trivial = (2, 4, 20) if options.quick else (NODES, SLEEPS, TRIVIAL)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as name, cluster(Path(name), nodes) as ray:
        folder, address = Path(name), ray.get_runtime_context().gcs_address
        os.environ["DEPLOY_RUNNER_CACHE_KEY"] = "a key for this benchmark only, of 32 characters or more"
        warm(ray, nodes)
        contenders = {
            "bare sleeps": sleeping_tasks(ray, sleeps),
            "sleeping stages": stages(folder, address, "sleeping", sleeps, "sleep 1"),
            "bare isolated": isolated_tasks(ray, trivial),
            "trivial stages": stages(folder, address, "trivial", trivial, ":"),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(options.rounds + 1):
            for contender, run in contenders.items():
                seconds = run()
                print(
                    f"round {turn}: {contender} {seconds:.2f} s" + ("" if turn else " (warming up)"),
                    file=sys.stderr,
                )
                if turn:
                    times[contender].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    figures["speedup"] = sleeps / medians["sleeping stages"]
    figures["bare speedup"] = sleeps / medians["bare sleeps"]
    figures["ms a stage over bare"] = (medians["sleeping stages"] - medians["bare sleeps"]) / sleeps * 1000
    figures["trivial ratio"] = medians["trivial stages"] / medians["bare isolated"]
    print(json.dumps({name: round(value, 3) for name, value in (medians | figures).items()}, indent=2))
    missed = (
        figures["speedup"] < LEAST_SPEEDUP
        or figures["ms a stage over bare"] > MOST_MS
        or figures["trivial ratio"] > MOST_RATIO
    )
    return 1 if missed and not options.quick else 0


if __name__ == "__main__":
    raise SystemExit(main())
