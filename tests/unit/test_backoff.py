"""How long to wait before a call is tried again."""

from __future__ import annotations

import email.utils
import time

import pytest

from deploy_runner.stages.push.backoff import ATTEMPTS, Backoff


def longest(low: float, high: float) -> float:
    return high


def test_the_delay_is_random_below_a_bound_that_doubles() -> None:
    backoff = Backoff(now=lambda: 0.0, chance=longest, deadline_s=1e6)
    assert [backoff.delay(tried, "x") for tried in (1, 2, 3)] == [0.4, 0.8, 1.6]
    assert backoff.delay(7, "x") == 20.0
    least = Backoff(now=lambda: 0.0, chance=lambda low, high: low)
    assert least.delay(1, "x") == 0.0


def test_retry_after_is_never_undercut() -> None:
    backoff = Backoff(now=lambda: 0.0, chance=lambda low, high: low)
    assert backoff.delay(1, "x", "7") == 7.0
    moment = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert backoff.delay(1, "x", moment) == pytest.approx(30, abs=2)
    assert backoff.delay(1, "x", "soon") == 0.0


def test_it_is_given_up_after_the_last_try_and_at_the_deadline() -> None:
    backoff = Backoff(now=lambda: 0.0, chance=longest, deadline_s=10.0)
    assert backoff.delay(ATTEMPTS, "x") is None
    assert backoff.delay(1, "x", "11") is None
    assert backoff.delay(1, "x", "9") == 9.0


def test_each_try_is_said() -> None:
    said: list[str] = []
    Backoff(now=lambda: 0.0, chance=longest, log=said.append).delay(2, "PutObject: HTTP 503 SlowDown")
    assert said == ["PutObject: HTTP 503 SlowDown; try 3 in 0.8 s"]
