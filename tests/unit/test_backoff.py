"""How long to wait before a call is tried again."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ParamValidationError, ReadTimeoutError
from botocore.hooks import HierarchicalEmitter

from deploy_runner.stages.push.backoff import (
    ATTEMPTS,
    Backoff,
    broken_off,
    retryable,
    transient_status,
)


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
    assert backoff.delay(1, "x", "") == 0.0
    before = email.utils.formatdate(time.time() - 30, usegmt=True)
    assert backoff.delay(1, "x", before) == 0.0


def test_it_is_given_up_after_the_last_try_and_at_the_deadline() -> None:
    backoff = Backoff(now=lambda: 0.0, chance=longest, deadline_s=10.0)
    assert backoff.delay(ATTEMPTS, "x") is None
    assert backoff.delay(1, "x", "11") is None
    assert backoff.delay(ATTEMPTS - 1, "x") is None
    assert backoff.delay(5, "x") == 6.4
    assert backoff.delay(1, "x", "9") == 9.0
    assert backoff.delay(1, "x", "10") == 10.0


def test_the_deadline_is_reckoned_from_the_first_moment() -> None:
    clock = iter([100.0, 105.0, 109.9])
    backoff = Backoff(now=lambda: next(clock), chance=longest, deadline_s=10.0)
    assert backoff.delay(1, "x") == 0.4
    assert backoff.delay(1, "x") is None


def test_as_many_tries_as_are_asked_for() -> None:
    backoff = Backoff(attempts=2, now=lambda: 0.0, chance=longest)
    assert backoff.delay(1, "x") == 0.4
    assert backoff.delay(2, "x") is None


def test_each_try_is_said() -> None:
    said: list[str] = []
    Backoff(now=lambda: 0.0, chance=longest, log=said.append).delay(2, "PutObject: HTTP 503 SlowDown")
    assert said == ["PutObject: HTTP 503 SlowDown; try 3 in 0.8 s"]


@dataclass
class Operation:
    """What botocore says of a call."""

    name: str = "PutObject"
    has_streaming_output: bool = False
    http: Mapping[str, str] = field(default_factory=lambda: {"method": "PUT"})


class Http(AWSResponse):  # type: ignore[misc]
    """An answer that has been read."""

    def __init__(self, status: int, headers: Mapping[str, str] | None = None, content: bytes = b"") -> None:
        super().__init__("http://localhost", status, headers or {}, None)
        self._content = content


def parsed(code: str = "", **headers: str) -> dict[str, Any]:
    error = {"Error": {"Code": code}} if code else {}
    return error | {"ResponseMetadata": {"HTTPHeaders": {k.replace("_", "-"): v for k, v in headers.items()}}}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_be_gone_at_the_next_try_is_worth_one(status: int) -> None:
    assert transient_status(status)
    assert retryable((Http(status), parsed()), None) == f"HTTP {status}"
    assert retryable((Http(status), parsed("Odd")), None) == f"HTTP {status} Odd"


@pytest.mark.parametrize("status", [200, 301, 400, 403, 404, 409, 412, 501])
def test_any_other_status_is_not(status: int) -> None:
    assert not transient_status(status)
    assert retryable((Http(status), parsed()), None) == ""
    assert retryable((Http(status), parsed("AccessDenied")), None) == ""


def test_a_code_that_says_come_again_is_worth_one_whatever_the_status() -> None:
    assert retryable((Http(400), parsed("ThrottlingException")), None) == "HTTP 400 ThrottlingException"
    assert retryable((Http(200), parsed("SlowDown")), None) == "HTTP 200 SlowDown"


def test_a_lost_connection_is_worth_another_try_and_a_wrong_call_is_not() -> None:
    assert retryable(None, ReadTimeoutError(endpoint_url="http://localhost")) == "ReadTimeoutError"
    assert retryable(None, ConnectionResetError()) == "ConnectionResetError"
    assert retryable(None, ParamValidationError(report="no Bucket")) == ""


@pytest.mark.parametrize(
    ("operation", "headers", "broken"),
    [
        (Operation(), {"Content-Length": "5"}, True),
        (Operation(), {"Content-Length": "4"}, False),
        (Operation(), {"Content-Length": "3"}, False),
        (Operation(), {"Content-Length": "many"}, False),
        (Operation(), {}, False),
        (Operation(has_streaming_output=True), {"Content-Length": "5"}, False),
        (Operation(http={"method": "HEAD"}), {"Content-Length": "5"}, False),
    ],
)
def test_an_answer_shorter_than_its_header_says_has_broken_off(
    operation: Operation, headers: Mapping[str, str], broken: bool
) -> None:
    assert broken_off(operation, Http(200, headers, b"four")) is broken


class Session:
    """The part of a boto3 session that is told who decides."""

    def __init__(self) -> None:
        self.events = HierarchicalEmitter()

    def asked(self, service: str, attempts: int, **answer: Any) -> Any:
        event = f"needs-retry.{service}.PutObject"
        answers = self.events.emit(event, attempts=attempts, operation=Operation(), **answer)
        return next((said for _, said in answers), None)


@pytest.mark.parametrize("service", ["s3", "sagemaker", "sagemaker-runtime"])
def test_a_session_that_follows_it_waits_as_it_says(service: str) -> None:
    said: list[str] = []
    session = Session()
    Backoff(now=lambda: 0.0, chance=longest, attempts=3, log=said.append).follow(session)
    busy = (Http(503), parsed("SlowDown"))
    assert session.asked(service, 1, response=busy, caught_exception=None) == 0.4
    assert session.asked(service, 2, response=None, caught_exception=ConnectionResetError()) == 0.8
    assert session.asked(service, 3, response=busy, caught_exception=None) is False
    assert session.asked(service, 1, response=(Http(404), parsed()), caught_exception=None) is False
    later = (Http(429), parsed(retry_after="7"))
    assert session.asked(service, 1, response=later, caught_exception=None) == 7.0
    cut = (Http(200, {"Content-Length": "5"}), parsed())
    assert session.asked(service, 1, response=cut, caught_exception=None) == 0.4
    assert session.asked("ec2", 1, response=busy, caught_exception=None) is None
    assert said == [
        "PutObject: HTTP 503 SlowDown; try 2 in 0.4 s",
        "PutObject: ConnectionResetError; try 3 in 0.8 s",
        "PutObject: HTTP 429; try 2 in 7.0 s",
        "PutObject: the response was cut off; try 2 in 0.4 s",
    ]
