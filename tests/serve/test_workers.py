"""Several workers are one server: one port, one set of figures, one reload, one end."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.serve.models import Digits
from tests.serve.server import LONG, Server, ask, client, listening, refusal, running, serving, until

IMAGE = [[0.5] * 64]
CONNECTIONS = 40
"""All on one of two workers: once in 5e11 runs."""
CORES = len(os.sched_getaffinity(0))

several = pytest.mark.skipif(CORES < 2, reason="more workers than cores are never started")


@contextmanager
def crew(artifact: Path, folder: Path, *options: object) -> Iterator[Server]:
    """Run two workers."""
    with serving(artifact, "--workers", 2, *options, folder=folder) as server:
        yield server


def pids(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def answers(server: Server) -> set[float]:
    """Ask by many connections at once; return the different answers."""
    with ExitStack() as stack:
        connections = [stack.enter_context(client(server.url)) for _ in range(CONNECTIONS)]
        found = [ask(connection, "POST", "/predict", IMAGE) for connection in connections]
    return {round(answer.json["outputs"]["output"][0][0], 3) for answer in found}


def asked(server: Server) -> float:
    return server.figures().get("serve_requests_total /predict 200", 0)


@several
def test_all_workers_count_reload_and_are_replaced(digits: Digits, other: Path, tmp_path: Path) -> None:
    place = tmp_path / "current"
    place.symlink_to(digits.onnx)
    with crew(place, tmp_path, "--access-log") as server:
        first = pids(server)
        assert len(first) == server.figures()["serve_workers"] == 2
        assert answers(server) == {1.578}
        until(lambda: asked(server) == CONNECTIONS)
        by = {event["worker"] for event in server.events() if event["event"] == "request"}
        assert by == {0, 1}

        (tmp_path / "next").symlink_to(other)
        (tmp_path / "next").rename(place)
        server.signal(signal.SIGHUP)
        server.wait_for("reload", 2)
        assert answers(server) == {2.578}
        # Every worker says it, so each has shown what it had counted: one that is killed takes the rest with it.
        until(lambda: all(asked(server) == 2 * CONNECTIONS for _ in range(CONNECTIONS)))
        assert server.figures()["serve_reloads_total swapped"] == 1

        os.kill(min(first), signal.SIGKILL)
        assert server.wait_for("worker ended")["code"] == -signal.SIGKILL
        server.wait_for("model", 5)
        assert answers(server) == {2.578}, "a new worker serves what came in the place of its model"
        until(lambda: asked(server) == 3 * CONNECTIONS)
        assert len(pids(server)) == 2 != len(pids(server) & first)

        port = urllib.parse.urlsplit(server.url).port
        assert "Address already in use" in refusal(digits.onnx, "--port", port, "--workers", 2)
    assert {event["worker"] for event in server.events() if event["event"] == "stopped"} == {0, 1}


@pytest.mark.slow
@several
def test_a_signal_to_all_processes_answers_what_every_worker_runs(slow: Path, tmp_path: Path) -> None:
    body = f"[[{LONG[0][0]}, 0]]".encode()
    request = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with crew(slow, tmp_path) as server, ExitStack() as stack:
        place = urllib.parse.urlsplit(server.url)
        opened = [
            stack.enter_context(socket.create_connection((place.hostname, place.port), 60)) for _ in range(16)
        ]
        for connection in opened:
            connection.sendall(request)
        until(lambda: server.figures()["serve_running_batches"] == 2)
        os.killpg(server.process.pid, signal.SIGINT)
        server.wait_for("draining", 2)
        assert all(connection.recv(1 << 16).startswith(b"HTTP/1.1 200") for connection in opened)
        assert server.process.wait(60) == 0


def started(artifact: Path, folder: Path, workers: int) -> AbstractContextManager[Server]:
    command = [sys.executable, "-m", "deploy_runner", "serve", str(artifact), "--port", "0", "--json"]
    return listening([*command, "--workers", str(workers)], folder=folder)


@pytest.mark.slow
@several
def test_the_second_signal_ends_all_at_once(slow: Path, tmp_path: Path) -> None:
    with started(slow, tmp_path, 2) as server:
        with running(server, [[1e8, 0.0]]) as answer:
            left = [psutil.Process(pid) for pid in pids(server)]
            server.signal(signal.SIGTERM)
            server.wait_for("draining", 2)
            server.signal(signal.SIGTERM)
            assert server.process.wait(60) == 130
        assert isinstance(answer.exception(), ConnectionError)
        assert not psutil.wait_procs(left, 60)[1]


@pytest.mark.slow
def test_the_first_process_that_is_killed_leaves_no_worker(digits: Digits, tmp_path: Path) -> None:
    with started(digits.onnx, tmp_path, min(2, CORES)) as server:
        left = [psutil.Process(pid) for pid in pids(server)]
        server.process.kill()
        server.process.wait(60)
        assert not psutil.wait_procs(left, 60)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "workers", "threads"),
    [
        ((), min(8, CORES), 1),
        (("--workers", CORES + 3), CORES, 1),
        (("--threads", CORES), 1, CORES),
        (("--workers", 1, "--threads", CORES + 3), 1, CORES),
        (("--server", "flask", "--workers", 2), 1, 1),
    ],
)
def test_there_are_never_more_threads_than_cores(
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    workers: int,
    threads: int,
) -> None:
    monkeypatch.delenv("SERVE_WORKERS")
    with serving(digits.onnx, *options, folder=tmp_path) as server:
        said = server.wait_for("model")
        assert server.predict(IMAGE).status == 200
    assert (said["workers"], said["threads"]) == (workers, threads)


@pytest.mark.slow
@several
def test_workers_share_the_weights(tmp_path: Path) -> None:
    width = 4096
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(np.ones((width, width), np.float32), "w")],
    )
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    with crew(file, tmp_path) as server:
        assert server.predict([[1.0] * width]).status == 200
        for pid in pids(server):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            private = sum(int(kib) for kib in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.M))
            assert private << 10 < 4 * width * width / 2
