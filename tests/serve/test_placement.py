"""Where batches run, in the event loop or in a thread: by the CPU time they take, whatever was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve import models
from tests.serve.models import Digits
from tests.serve.server import Server, ask, client, serving

LONG, SHORT = [[3000.0, 0.0]], [[1.0, 0.0]]
ENOUGH = 5000
"""Requests after which a size of batches has moved."""


def ran(server: Server) -> tuple[float, float]:
    """Return how many batches ran in the loop, and in threads."""
    figures = server.figures()
    return figures["serve_batches_total loop"], figures["serve_batches_total thread"]


def moved(server: Server, body: object, to: str) -> None:
    """Ask until a size of batches moves, which the log says."""
    with client(server.url) as connection:
        for _ in range(ENOUGH):
            assert ask(connection, "POST", "/predict", body).status == 200
            said = [event for event in server.events() if event["event"] == "placement"]
            if said and said[-1]["runs_in"] == to:
                return
    raise AssertionError(f"it never moved to the {to}")


def test_what_takes_longer_than_expected_goes_to_a_thread_and_comes_back(tmp_path: Path) -> None:
    model = models.slow(tmp_path / "model", base=1)
    with serving(model, folder=tmp_path) as server:
        assert server.wait_for("model")["in_loop"] >= 1
        assert server.predict(SHORT).status == 200
        assert ran(server) == (1, 0)
        moved(server, LONG, "thread")
        before = ran(server)
        assert server.predict(LONG).status == 200
        assert ran(server) == (before[0], before[1] + 1)
        moved(server, SHORT, "loop")


@pytest.mark.slow
@pytest.mark.parametrize(("place", "expected"), [("loop", (3, 0)), ("thread", (0, 3))])
def test_run_in_decides_it(digits: Digits, tmp_path: Path, place: str, expected: tuple[int, int]) -> None:
    with serving(digits.onnx, "--run-in", place, "--max-batch", "1", folder=tmp_path) as server:
        assert server.wait_for("model")["in_loop"] == (1 if place == "loop" else 0)
        assert {server.predict([[0.5] * 64]).status for _ in range(3)} == {200}
        assert ran(server) == expected


@pytest.mark.slow
def test_a_model_that_takes_long_is_not_run_in_the_loop(slow: Path, tmp_path: Path) -> None:
    with serving(slow, folder=tmp_path) as server:
        assert server.wait_for("model")["in_loop"] == 0
        assert server.predict(SHORT).status == 200
        assert ran(server) == (0, 1)
