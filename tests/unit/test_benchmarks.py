"""What the benchmarks judge by: a soak that can't fail would prove nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.clients import Witness
from benchmarks.digits import Question
from benchmarks.soak import Memory

OLD, NEW = 0, 1
ANSWERS = (np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([[1.5, 2.0], [3.0, 4.5]], np.float32))


@pytest.mark.parametrize(
    ("reply", "model"),
    [
        pytest.param({"outputs": {"output": [[1, 2], [3, 4]]}}, OLD, id="old"),
        pytest.param([[1.5, 2.0], [3.0, 4.5001]], NEW, id="new, within rounding"),
        pytest.param({"outputs": [[1, 2], [3, 4.5]]}, None, id="a mix of both"),
        pytest.param({"outputs": [[1, 2]]}, None, id="an image is missing"),
        pytest.param({"detail": "no"}, None, id="no numbers"),
        pytest.param({}, None, id="empty"),
    ],
)
def test_a_reply_is_all_of_one_model(reply: object, model: int | None) -> None:
    assert Question(b"", ANSWERS).answered_by(json.dumps(reply).encode()) == model


def test_the_old_model_may_answer_only_what_was_sent_before_the_new_one_answered() -> None:
    witness = Witness()
    assert witness.accepts(OLD, 1.0)
    assert not witness.accepts(NEW, 1.0)
    witness.wanted = NEW
    assert witness.accepts(OLD, 2.0)
    assert witness.accepts(NEW, 2.0)
    assert witness.reloads == 1
    assert witness.accepts(OLD, witness.since_s - 1)
    assert not witness.accepts(OLD, witness.since_s + 1)
    assert not witness.accepts(None, 1.0)


def test_memory_that_grows_by_requests_has_a_slope_and_by_reloads_a_growth() -> None:
    level = [(float(s), 100 << 20) for s in range(100)]
    leaking = [(float(s), (100 << 20) + s * (1 << 20)) for s in range(100)]
    assert (Memory.of(level).growth, round(Memory.of(level).slope_per_minute, 6)) == (1, 0)
    assert Memory.of(leaking).growth == pytest.approx(1.48, abs=0.01)
    assert Memory.of(leaking).slope_per_minute == pytest.approx(60)
