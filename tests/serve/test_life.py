"""The server's life: queue and deadlines, reload, drain, and what it refuses to serve."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.conftest import Project
from tests.serve.conftest import Server, outputs, refusal

LONG = [[30_000.0, 0.0]]
"""Steps of the slow model that take about a second."""


@contextmanager
def running(server: Server, body: Any = LONG) -> Iterator[Future[requests.Response]]:
    """Send a long request, and go on when the model runs it."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, "/predict", body)
        wait(lambda: server.figure("serve_running_batches") == 1)
        yield answer


def wait(until: Callable[[], bool]) -> None:
    """Look again and again until it is true; the test's own limit ends it."""
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_beyond_the_queue_are_told_when_to_come_again(slow: Path) -> None:
    with (
        Server(slow, "--trust", "--max-queue", "4", "--max-samples", "4") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        with running(server) as first:
            waiting = [pool.submit(server.post, "/predict", [[1, index]]) for index in range(4)]
            wait(lambda: server.figure("serve_queue_samples") == 4)
            full = server.post("/predict", [[0, 0]])
        assert [answer.result().status_code for answer in (first, *waiting)] == [200] * 5
        assert [answer.result().json()["outputs"]["sum"] for answer in waiting] == [
            [[1 + i]] for i in range(4)
        ]
        assert server.post("/predict", [[2, 3]]).json() == {"outputs": {"sum": [[5.0]]}}
        assert server.figure("serve_batch_samples_bucket", le="2.0") < server.figure(
            "serve_batch_samples_count"
        )
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert full.json()["detail"][0]["msg"] == "4 samples are waiting, at most 4 may"


def test_a_request_has_so_much_time_whether_it_runs_or_waits(slow: Path) -> None:
    with Server(slow, "--trust", "--timeout-s", "0.2") as server:
        with running(server) as first:
            late = server.post("/predict", [[0, 0]])
        assert (first.result().status_code, late.status_code) == (504, 503)
        assert late.headers["retry-after"] == "1"
        assert late.json()["detail"][0]["msg"] == "the request waited for 0.2 s and was not begun"
        assert (
            first.result().json()["detail"][0]["msg"]
            == "the model took longer than the 0.2 s that a request has"
        )
        wait(lambda: server.figure("serve_running_batches") == 0)
        assert server.post("/predict", [[1, 2]]).status_code == 200


def test_a_client_that_goes_leaves_no_entry_in_the_queue(slow: Path) -> None:
    with Server(slow, "--trust") as server, running(server, [[60_000.0, 0.0]]) as first:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        connection.request("POST", "/predict", json.dumps([[0, 0]] * 7), {"content-type": "application/json"})
        wait(lambda: server.figure("serve_queue_samples") == 7)
        connection.close()
        wait(lambda: server.figure("serve_queue_samples") == 0)
        assert not first.done()


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_sigterm_answers_what_runs_and_ends_with_0(slow: Path, kind: str) -> None:
    with Server(slow, "--trust", "--server", kind, "--lame-duck-s", "0.5") as server:
        with running(server) as answer:
            server.process.send_signal(signal.SIGTERM)
            server.until("draining")
            ready = server.get("/v2/health/ready")
            taken = server.post("/predict", [[1, 2]])
        assert (ready.status_code, taken.status_code, answer.result().status_code) == (503, 200, 200)
        assert answer.result().json() == {"outputs": {"sum": [[30_000.0]]}}
        assert server.end() == 0
    assert server.log[-1]["event"] == "stopped"


def test_the_second_signal_ends_it_at_once(slow: Path) -> None:
    server = Server(slow, "--trust")
    with running(server, [[1e7, 0.0]]) as answer:
        server.process.send_signal(signal.SIGTERM)
        server.until("draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 130
    assert isinstance(answer.exception(), requests.ConnectionError)


def ask_until(stop: threading.Event, server: Server, image: Any) -> list[tuple[int, Any]]:
    found = []
    with requests.Session() as session:
        while not stop.is_set():
            answer = session.post(server.url + "/predict", json=image, timeout=60)
            found.append((answer.status_code, tuple(answer.json()["outputs"]["output"][0])))
    return found


@contextmanager
def under_load(server: Server, image: Any) -> Iterator[list[tuple[int, Any]]]:
    """Ask all the time by 8 clients; the list holds every answer at the end."""
    stop, found = threading.Event(), []
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask_until, stop, server, image) for _ in range(8)]
        try:
            yield found
        finally:
            stop.set()
        for answers in asking:
            found += answers.result()


def link(place: Path, target: Path) -> Path:
    """Make `place` lead to the target, at once."""
    new = place.with_name("next")
    new.symlink_to(target)
    new.rename(place)
    return place


def test_a_reload_fails_no_request_and_a_bad_artifact_is_refused(
    tmp_path: Path, fp32: Path, int8: Path, bundle: Path, images: Any
) -> None:
    place, image = link(tmp_path / "current", fp32), images[:1].tolist()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "model.onnx").write_bytes((fp32 / "model.onnx").read_bytes()[:-1000])
    with Server(place, "--reference", bundle, "--atol", "3") as server:
        with under_load(server, image) as found:
            for target, event in (
                (int8, "reload"),
                (damaged, "reload refused"),
                (fp32, "reload"),
                (fp32, "reload"),
            ):
                link(place, target)
                server.process.send_signal(signal.SIGHUP)
                server.until(event)
        assert server.get("/v2/models/model").json()["parameters"]["digest"] == server.said["digest"]
        results = ("swapped", "refused", "unchanged")
        assert [server.figure("serve_reloads_total", result=r) for r in results] == [2, 1, 1]
    assert {status for status, _ in found} == {200}
    expected = [outputs(model, image=images[:1])["output"][0] for model in (fp32, int8)]
    assert all(
        any(np.allclose(row, e, rtol=1e-3, atol=1e-3) for e in expected) for row in {r for _, r in found}
    )
    refused = next(line for line in server.log if line["event"] == "reload refused")
    assert refused["kept"] != server.said["digest"][:12]


def test_a_model_that_answers_its_reference_samples_wrong_is_not_swapped_in(
    tmp_path: Path, fp32: Path, int8: Path, bundle: Path
) -> None:
    place = link(tmp_path / "current", fp32)
    with Server(place, "--reference", bundle, "--watch") as server:
        link(place, int8)
        said = server.until("reload refused")["error"]
        assert server.get("/v2/models/model").json()["parameters"]["digest"] == server.said["digest"]
    assert said.startswith("reference case 0: output 'output' differs by up to ")


def test_an_output_of_a_pipeline_is_served_and_replaced_by_the_next_runs(
    tmp_path: Path, fp32: Path, int8: Path
) -> None:
    project = Project(tmp_path / "project")
    project.pipeline("a: {uses: run.command, inputs: {given: in.onnx}, outputs: {model: model.onnx}, "
                     "with: {command: 'cp $INPUT_GIVEN $OUTPUT_MODEL'}}")  # fmt: skip
    shutil.copy(fp32 / "model.onnx", project.folder / "in.onnx")
    project.run()
    command = ["deploy-runner", "serve", "a", "--watch", "--port", "0", "--json"]
    binary = str(Path(sys.executable).parent / command[0])
    with Server(command=[binary, *command[1:]], cwd=project.folder) as server:
        before = server.get("/v2/models/test").json()["parameters"]["digest"]
        shutil.copy(int8 / "model.onnx", project.folder / "in.onnx")
        project.run()
        server.until("reload")
        after = server.get("/v2/models/test").json()["parameters"]["digest"]
    assert before == server.said["digest"] != after
    assert server.process.returncode == 0


def test_metrics_count_requests_by_route_and_status(fp32: Path, images: Any) -> None:
    with Server(fp32) as server:
        for body in (images[:1].tolist(), images[:2].tolist(), [[1]]):
            server.post("/predict", body)
        server.post("/v2/models/model/infer", {})
        counted = [("/predict", "200", 2), ("/predict", "422", 1), ("/v2/infer", "400", 1)]
        for route, status, number in counted:
            assert server.figure("serve_requests_total", route=route, status=status) == number
        assert server.figure("serve_batch_samples_sum") == 3
        info = {"name": "model", "digest": server.said["digest"], "format": "onnx"}
        assert server.figure("serve_model_info", **info) == 1
        assert server.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def onnx_with_external_data(folder: Path) -> Path:
    import onnx

    folder.mkdir()
    weights = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(n, 1, ["batch", 4]) for n in ("x", "y")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    return folder


def test_external_data_is_served_but_not_through_a_link(tmp_path: Path) -> None:
    folder = onnx_with_external_data(tmp_path / "model")
    with Server(folder) as server:
        assert server.post("/predict", [[1, 2, 3, 4]]).json() == {"outputs": {"y": [[10.0] * 4]}}
    os.link(folder / "model.onnx.data", tmp_path / "elsewhere")
    assert refusal(folder) == (
        "error: model.onnx.data is a link, beside a model with external data (put a copy in its place)"
    )


def tar_with(path: Path, name: str, kind: bytes) -> Path:
    import tarfile

    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, "/etc/passwd"
        tar.addfile(entry)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda t: t / "nothing.onnx", "nothing.onnx does not exist", id="nothing"),
        pytest.param(lambda t: t, "holds neither model.onnx nor model.json", id="an empty folder"),
        pytest.param(lambda t: tar_with(t / "m.tar.gz", "model.json", b"2"), "is a link, a device, or leaves it", id="a link in an archive"),
        pytest.param(lambda t: tar_with(t / "m.tar.gz", "../x", b"5"), "is a link, a device, or leaves it", id="a name that leaves"),
        pytest.param(lambda t: (t / "m.tar.gz").write_bytes(b"x") and t / "m.tar.gz", "is not a sound .tar.gz", id="no archive"),
        pytest.param(lambda t: (t / "m.onnx").write_bytes(b"x") and t / "m.onnx", "onnxruntime can't load the model", id="no ONNX"),
        pytest.param(lambda t: (t / "m.onnx").write_bytes(b"") or t / "m.onnx", "m.onnx is empty", id="an empty file"),
    ],
)  # fmt: skip
def test_what_cant_be_served_is_one_sentence(tmp_path: Path, make: Any, said: str) -> None:
    assert said in refusal(make(tmp_path))


def test_torchscript_needs_trust_and_names(traced: Path) -> None:
    name = traced.name
    assert refusal(traced) == f"error: {name} is TorchScript, which is code (if you trust it: --trust)"
    assert refusal(traced, "--trust") == (
        f"error: nothing names the inputs of {name} (--reference BUNDLE of model.prepare, or a model.json beside it)"
    )


def test_a_port_in_use_and_options_that_contradict_each_other_are_said(fp32: Path, used_port: int) -> None:
    command = [sys.executable, "-m", "deploy_runner", "serve", str(fp32), "--port", str(used_port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, f"error: 127.0.0.1:{used_port}: Address already in use"
    )  # fmt: skip
    assert "max_samples 1024 is more than max_queue 8" in refusal(fp32, "--max-queue", "8")


@pytest.mark.slow
def test_minutes_of_load_with_reloads_leave_the_memory_level(
    tmp_path: Path, fp32: Path, int8: Path, images: Any
) -> None:
    import psutil

    place = link(tmp_path / "current", fp32)
    with Server(place) as server:
        process, resident = psutil.Process(server.process.pid), []
        with under_load(server, images[:1].tolist()) as found:
            for target in (int8, fp32) * 20:
                link(place, target)
                server.process.send_signal(signal.SIGHUP)
                server.until("reload")
                resident.append(process.memory_info().rss)
    assert {status for status, _ in found} == {200}
    assert max(resident[20:]) < 1.1 * max(resident[:20])
