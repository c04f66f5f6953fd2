"""Every push to AWS, every request of it, every fault: the remote ends as a clean push leaves it, once.

`test_push_aws` has the plain endpoint and the large file; here are all others, and what undoes a push. A
sample of it is in the slow suite, all of it is marked `faults`.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws import local_aws
from tests.conftest import ROOT
from tests.faults.aws_pushes import PUSHES, Remote
from tests.faults.proxy import Fault, FaultProxy, Kind, Moment, Request

KINDS: tuple[Kind, ...] = (
    500, 503, 429, "reset", "partial", "commit_then_reset", "duplicate", "truncated", "slow", "stall",
)  # fmt: skip
SAMPLE = 3
READ_TIMEOUT_S = 3
"""boto3's own is a minute, which every stalled request would cost."""
POLLS = ("SageMaker.DescribeEndpoint", "SageMaker.DescribeTransformJob")


@pytest.fixture
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from botocore.config import Config

    monkeypatch.setitem(Config.OPTION_DEFAULTS, "read_timeout", READ_TIMEOUT_S)
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


class Matrix:
    """One push disturbed again and again, on a remote of its own each time."""

    def __init__(self, aws: str, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._aws, self._folder, self._monkeypatch, self._name = aws, folder, monkeypatch, name
        self._remotes = itertools.count()
        proxy, self.clean = self._through([])
        polls = [r for r in proxy.requests if r.headers.get("x-amz-target") in POLLS]
        self.requests = len(proxy.requests) - max(0, len(polls) - 2)

    def _remote(self) -> Remote:
        remote = Remote(self._aws, f"remote{next(self._remotes)}", self._folder)
        PUSHES[self._name].before(remote)
        return remote

    def _through(self, faults: list[Fault]) -> tuple[FaultProxy, dict[str, Any]]:
        remote = self._remote()
        with FaultProxy(self._aws, faults) as proxy:
            self._monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            PUSHES[self._name].push(remote)
        self._monkeypatch.setenv("AWS_ENDPOINT_URL", self._aws)
        return proxy, self._ended(remote)

    def _ended(self, remote: Remote) -> dict[str, Any]:
        state = remote.state()
        remote.stop()
        return state

    def ends_as_the_clean_one(self, kind: Kind, nth: int) -> bool:
        """Assert that a push with this fault leaves what the clean one has left; say whether it happened."""
        headers = (("Retry-After", "1"),) if kind == 429 else ()
        proxy, state = self._through([Fault(kind, nth=nth, headers=headers, delay_s=0.2)])
        assert state == self.clean, (kind, nth, proxy.requests[nth - 1 : nth + 1])
        return bool(proxy.injected)

    def ends_as_the_clean_one_after_a_kill(self, at: int) -> bool:
        """Kill the push at the `at`-th moment, and assert that the next one completes it."""
        remote, killer = self._remote(), Killer(at)
        with FaultProxy(self._aws, observe=killer) as proxy:
            arguments = [self._aws, remote.name, str(self._folder), self._name]
            killer.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.aws_pushes", *arguments],
                env={**os.environ, "AWS_ENDPOINT_URL": proxy.url}, cwd=ROOT, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            killed = killer.process.wait() == -signal.SIGKILL
        PUSHES[self._name].push(remote)
        assert self._ended(remote) == self.clean, at
        return killed


class Killer:
    """Kills a process at the `at`-th moment that the proxy sees."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, moment: Moment, request: Request) -> None:
        self._left -= 1
        if self._left == 0 and self.process is not None:
            self.process.kill()
            self.process.wait()


KILLED = [name for name, disturbed in PUSHES.items() if disturbed.repeats]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUSHES)
def test_a_push_with_some_faults(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    matrix, chance = Matrix(aws, tmp_path, monkeypatch, name), random.Random(name)
    for kind in chance.sample(KINDS, SAMPLE):
        assert matrix.ends_as_the_clean_one(kind, chance.randint(1, matrix.requests))


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_push_is_completed_by_the_next(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    matrix = Matrix(aws, tmp_path, monkeypatch, name)
    assert matrix.ends_as_the_clean_one_after_a_kill(random.Random(name).randint(1, 3 * matrix.requests - 6))


@pytest.mark.faults
@pytest.mark.parametrize("name", PUSHES)
def test_a_push_with_every_fault_at_every_request(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    matrix = Matrix(aws, tmp_path, monkeypatch, name)
    cases = list(itertools.product(KINDS, range(1, matrix.requests + 1)))
    happened = [matrix.ends_as_the_clean_one(kind, nth) for kind, nth in cases]
    assert happened.count(True) >= len(cases) - 2 * len(KINDS)


@pytest.mark.faults
@pytest.mark.parametrize("name", KILLED)
def test_a_push_killed_at_every_moment_is_completed_by_the_next(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    matrix = Matrix(aws, tmp_path, monkeypatch, name)
    moments = range(1, 3 * matrix.requests - 6)
    assert sum(map(matrix.ends_as_the_clean_one_after_a_kill, moments)) >= 0.8 * len(moments)
