"""Decide how long to wait before a call is tried again: full jitter, `Retry-After`, a deadline.

botocore's own retries ignore `Retry-After` and give up after three tries, and the Hub's client
doesn't retry commits at all; so both get this one policy. Full jitter is a random delay from 0 to
`min(cap, base * 2 ** try)`: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from typing import Any

ATTEMPTS = 8
ASKED = 3
"""How often a question is asked: nobody waits for an answer as long as for a push."""
DEADLINE_S = 600.0
_BASE_S = 0.2
_CAP_S = 20.0
_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_CODES = frozenset(
    {
        "Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded",
        "SlowDown", "RequestTimeout", "InternalFailure", "ServiceUnavailable", "BadDigest",
        "IncompleteBody", "OperationAborted",
    }
)  # fmt: skip
_AWS_SERVICES = ("s3", "sagemaker", "sagemaker-runtime", "application-auto-scaling", "cloudwatch")


class Backoff:
    """The tries of one push: at most `attempts` of a call, and none after the deadline."""

    def __init__(
        self,
        *,
        attempts: int = ATTEMPTS,
        deadline_s: float = DEADLINE_S,
        log: Callable[[str], None] = lambda line: None,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._attempts = attempts
        self._log = log
        self._now = now
        self._chance = chance
        self._ends = now() + deadline_s

    def delay(self, tried: int, what: str, retry_after: str | None = None) -> float | None:
        """Return the seconds to wait after `tried` tries, or None where it is to be given up.

        `retry_after` is the header of that name: seconds or an HTTP date; no shorter wait is returned.
        """
        least = _seconds(retry_after)
        delay = max(least, self._chance(0.0, min(_CAP_S, _BASE_S * 2**tried)))
        if tried >= self._attempts or self._now() + delay > self._ends:
            return None
        self._log(f"{what}; try {tried + 1} in {delay:.1f} s")
        return delay

    def wait(self, tried: int, what: str, retry_after: str | None = None) -> bool:
        """Sleep until the next try; say False, at once, where it is to be given up."""
        delay = self.delay(tried, what, retry_after)
        if delay is None:
            return False
        time.sleep(delay)
        return True

    def follow(self, session: Any) -> None:
        """Make every client of a boto3 session retry by this policy and no other."""
        for service in _AWS_SERVICES:
            session.events.register_first(f"needs-retry.{service}", self._needs_retry)

    def _needs_retry(
        self, attempts: int, operation: Any, response: Any = None, caught_exception: Any = None, **_: Any
    ) -> float | bool:
        what = retryable(response, caught_exception)
        if not what and response is not None and broken_off(operation, response[0]):
            what = "the response was cut off"
        if not what:
            return False
        after = response[1]["ResponseMetadata"]["HTTPHeaders"].get("retry-after") if response else None
        delay = self.delay(attempts, f"{operation.name}: {what}", after)
        return False if delay is None else delay


def retryable(response: Any, error: Exception | None) -> str:
    """Say what makes an AWS call worth another try; nothing where it isn't."""
    if error is not None:
        from botocore.exceptions import BotoCoreError, HTTPClientError

        lost = isinstance(error, HTTPClientError) or not isinstance(error, BotoCoreError)
        return type(error).__name__ if lost else ""
    http, parsed = response
    code = parsed.get("Error", {}).get("Code", "")
    if http.status_code in _STATUSES or code in _CODES:
        return f"HTTP {http.status_code} {code}".strip()
    return ""


def broken_off(operation: Any, http: Any) -> bool:
    """Say whether an answer has fewer bytes than its header says.

    botocore 1.44 takes what has come of such a JSON answer for an empty one.
    """
    length = http.headers.get("Content-Length", "")
    if operation.has_streaming_output or operation.http["method"] == "HEAD" or not length.isdecimal():
        return False
    return len(http.content) < int(length)


def transient_status(status: int) -> bool:
    """Say whether an HTTP status is one that may be gone at the next try."""
    return status in _STATUSES


def _seconds(retry_after: str | None) -> float:
    if not retry_after:
        return 0.0
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, moment.timestamp() - time.time())
