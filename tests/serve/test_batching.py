"""What is run together, what never is, and what happens when there is too much of it."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.conftest import DIGITS
from tests.serve import models
from tests.serve.models import Digits
from tests.serve.server import Answer, Server, answer_of, ask, client, running, serving, until

FEW = 4
"""Batches in which what has gathered is run, at most: one would do, if all of it came in one read."""


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    with np.load(DIGITS / "heldout.npz") as held:
        images: np.ndarray[Any, Any] = held["x"][:32].astype(np.float32)
    return images


def at_once(server: Server, bodies: list[Any], rounds: int = 10) -> list[Answer]:
    """Send each body so many times by a client of its own, all at once; return the last answers."""
    start = threading.Barrier(len(bodies))

    def send(body: Any) -> Answer:
        with client(server.url) as connection:
            start.wait()
            return [ask(connection, "POST", "/predict", body) for _ in range(rounds)][-1]

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(send, bodies))


def gathered(server: Server, bodies: list[Any]) -> list[Answer]:
    """Send each body by a client of its own while the server stands still; let it go on, and return the answers."""
    with ExitStack() as stack:
        connections = [stack.enter_context(client(server.url)) for _ in bodies]
        for connection in connections:
            assert ask(connection, "GET", "/v2/health/live").status == 200
        server.signal(signal.SIGSTOP)
        os.waitpid(server.process.pid, os.WUNTRACED)
        for connection, body in zip(connections, bodies, strict=True):
            connection.request("POST", "/predict", json.dumps(body), {"Content-Type": "application/json"})
        server.signal(signal.SIGCONT)
        return [answer_of(connection) for connection in connections]


def values(answers: list[Answer]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(next(iter(a.json["outputs"].values())), np.float32) for a in answers])


def test_requests_that_come_together_are_run_together_and_answered_alike(
    digits: Digits, images: Any, tmp_path: Path
) -> None:
    with serving(digits.onnx, folder=tmp_path) as server:
        found = values(gathered(server, [image[None].tolist() for image in images]))
        figures = server.figures()
    assert figures["serve_batch_samples_sum"] == 32
    assert figures["serve_batch_samples_count"] <= FEW
    session = onnxruntime.InferenceSession(digits.onnx / "model.onnx")
    np.testing.assert_allclose(found, session.run(None, {"image": images})[0], rtol=1e-4, atol=1e-4)


def test_a_dynamically_quantized_model_is_run_one_request_at_a_time(
    digits: Digits, images: Any, tmp_path: Path
) -> None:
    """Its answer for a sample depends on the samples beside it: joining would change answers."""
    with serving(digits.dynamic, folder=tmp_path) as server:
        found = values(at_once(server, [image[None].tolist() for image in images]))
        assert server.figures()["serve_batch_samples_count"] == 320
        loaded = server.wait_for("model")
    assert loaded["why_alone"] == (
        "the model quantizes dynamically by the values of the whole batch (DynamicQuantizeLinear)"
    )
    session = onnxruntime.InferenceSession(digits.dynamic / "model.onnx")
    alone = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    assert np.array_equal(found, alone)


def test_a_requests_values_fail_no_other_in_its_batch(tmp_path: Path) -> None:
    with serving(models.tokens(tmp_path / "model"), folder=tmp_path) as server:
        answers = gathered(server, [[[1, 2, 3]], [[1, 2, 99]]] * 8)
        figures = server.figures()
    assert [a.status for a in answers] == [200, 422] * 8
    assert figures["serve_requests_total /predict 200"] == figures["serve_requests_total /predict 422"] == 8
    assert "indices element out of data bounds, idx=99" in answers[1].problems[0]
    assert figures["serve_batch_samples_count"] <= FEW


def test_torchscript_is_batched_too(digits: Digits, images: Any, tmp_path: Path) -> None:
    import torch

    options = ("--reference", digits.bundle, "--trust")
    with serving(digits.torchscript, *options, folder=tmp_path) as server:
        found = values(gathered(server, [image[None].tolist() for image in images]))
        assert server.figures()["serve_batch_samples_count"] <= FEW
        assert server.ask("GET", "/v2/models/model").json["platform"] == "pytorch_torchscript"
    with torch.inference_mode():
        eager = torch.jit.load(str(digits.torchscript))(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, eager, rtol=1e-4, atol=1e-4)


def test_requests_beyond_the_queue_are_told_when_to_come_again(slow: Path, tmp_path: Path) -> None:
    limits = ("--max-queue", 4, "--max-samples", 4)
    with serving(slow, *limits, folder=tmp_path) as server, ThreadPoolExecutor(4) as pool:
        with running(server) as first:
            waiting = [pool.submit(server.predict, [[1, index]]) for index in range(4)]
            until(lambda: server.figures()["serve_queue_samples"] == 4)
            full = server.predict([[0, 0]])
        answers = [future.result() for future in (first, *waiting)]
        assert server.figures()["serve_batch_samples_count"] == 2
    assert [answer.json for answer in answers] == [
        {"outputs": {"sum": [total]}} for total in (100_000.0, 1.0, 2.0, 3.0, 4.0)
    ]
    assert (full.status, full.headers["retry-after"]) == (429, "1")
    assert full.problems == ["4 samples are waiting, the limit is 4"]


def test_a_request_has_so_much_time_whether_it_runs_or_waits(slow: Path, tmp_path: Path) -> None:
    with serving(slow, "--timeout-s", 0.2, folder=tmp_path) as server:
        with running(server) as first:
            late = server.predict([[0, 0]])
        assert (first.result().status, late.status, late.headers["retry-after"]) == (504, 503, "1")
        assert late.problems == ["the request waited for 0.2 s and was not started"]
        assert first.result().problems == ["the model took longer than the request timeout of 0.2 s"]
        until(lambda: server.figures()["serve_running_batches"] == 0)
        assert server.predict([[1, 2]]).json == {"outputs": {"sum": [3.0]}}


def test_a_client_that_goes_leaves_nothing_in_the_queue(slow: Path, tmp_path: Path) -> None:
    with serving(slow, folder=tmp_path) as server, running(server, [[500_000.0, 0.0]]) as first:
        with client(server.url) as connection:
            body = json.dumps([[0, 0]] * 7)
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            until(lambda: server.figures()["serve_queue_samples"] == 7)
        until(lambda: server.figures()["serve_queue_samples"] == 0)
        assert first.result().status == 200
        assert server.figures()["serve_batch_samples_count"] == 1
