"""What one process knows of its shared cache: whether it can be read and written, and whom it trusts.

A remote that fails is left alone from then on, reading and writing apart, and said once: a run continues with
what is here. With `required` the failure is raised instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Literal, TypeVar

from ..errors import DeployRunnerError, UsageError
from ..types import RemoteSpec
from .namespace import is_pull_request
from .remote import Remote, RemoteError
from .signatures import SHORTEST_SECRET, Signatures

__all__ = [
    "HOLDERS", "LEASES", "OBJECTS", "RECORDS", "Direction", "Link", "RequiredError",
    "heartbeat_name", "lease_name", "object_name", "record_name",
]  # fmt: skip

OBJECTS, RECORDS, LEASES, HOLDERS = "v1/objects", "v1/records", "v1/leases", "v1/holders"
"""The folders of a shared cache."""

Direction = Literal["read", "written"]
_Result = TypeVar("_Result")
_NOTES: Mapping[Direction, str] = {
    "read": "continuing without the shared cache: {}",
    "written": "nothing more is written to the shared cache: {}",
}
_LONGER = f"set {SHORTEST_SECRET} characters or more, e.g. `openssl rand -hex 32`"


class RequiredError(DeployRunnerError):
    """The shared cache is required, and can't be used."""

    def __init__(self, error: RemoteError) -> None:
        super().__init__(error.message, fix=error.fix)
        self.exit_code = error.exit_code


def object_name(digest: str) -> str:
    """Return the name of an object in a shared cache."""
    return f"{OBJECTS}/{digest[:2]}/{digest[2:]}"


def record_name(key: str) -> str:
    """Return the name of an action record in a shared cache."""
    return f"{RECORDS}/{key[:2]}/{key[2:]}.json"


def lease_name(key: str) -> str:
    """Return the name of the lease of an action."""
    return f"{LEASES}/{key}"


def heartbeat_name(holder: str) -> str:
    """Return the name of the heartbeat of a holder of leases."""
    return f"{HOLDERS}/{holder}"


class Link:
    """The remote of a spec as this process may use it. `note` is told each sentence for the user, once."""

    def __init__(self, spec: RemoteSpec, environ: Mapping[str, str]) -> None:
        self.spec = spec
        self.remote = Remote(spec, environ)
        self.note: Callable[[str], None] = lambda sentence: None
        self._environ = environ
        self._off: dict[Direction, RemoteError] = {}
        self._lock = threading.Lock()

    def begin(self, note: Callable[[str], None]) -> None:
        """Begin a run, for which the remote may work again."""
        self.note = note
        with self._lock:
            self._off.clear()

    @cached_property
    def signatures(self) -> Signatures:
        """The keys that count. Raises UsageError for one that is none."""
        return Signatures(self.spec.public_keys, self._environ)

    @cached_property
    def reads(self) -> bool:
        """Say whether records from there can be trusted at all."""
        if not self.signatures.can_check:
            why, fix = "no public key is configured", "set cache.public_keys, or DEPLOY_RUNNER_CACHE_KEY"
            if self._environ.get("DEPLOY_RUNNER_CACHE_KEY"):
                why, fix = "DEPLOY_RUNNER_CACHE_KEY is too short", _LONGER
            self.refuse(
                "read",
                RemoteError(f"nothing in {self.remote.url} can be trusted: {why}", fix=fix, exit_code=2),
            )
        return self.signatures.can_check

    @cached_property
    def pushes(self) -> bool:
        """Say whether what is made here goes there: never from a pull request, and never unsigned."""
        if not self.spec.push or is_pull_request(self._environ):
            return False
        if obstacle := self.obstacle:
            self.refuse("written", RemoteError(
                f"nothing is pushed to {self.remote.url}: {obstacle.message}", fix=obstacle.fix,
                exit_code=2))  # fmt: skip
        return obstacle is None

    @cached_property
    def obstacle(self) -> UsageError | None:
        """Return why this machine may not write there, whatever the pipeline says of it, if it may not."""
        if is_pull_request(self._environ):
            return UsageError("a pull request only reads it", fix="push from a protected branch")
        if self.signatures.can_sign:
            return None
        state = "too short" if self._environ.get("DEPLOY_RUNNER_CACHE_KEY") else "not set"
        return UsageError(f"DEPLOY_RUNNER_CACHE_KEY is {state}", fix=_LONGER)

    def works(self, direction: Direction) -> bool:
        """Say whether nothing has failed yet in this direction."""
        return direction not in self._off

    def failure(self, direction: Direction) -> RemoteError | None:
        """Return what failed first in this direction."""
        return self._off.get(direction)

    def refuse(self, direction: Direction, error: RemoteError) -> None:
        """Take notice that the remote can't be read or written. Raises it where the cache is required.

        A reason is said once, also where it is the same for both.
        """
        with self._lock:
            said = any(other.cause == error.cause != "" for other in self._off.values())
            known = self._off.setdefault(direction, error) is not error
        if self.spec.required:
            raise RequiredError(error)
        if not (known or said):
            self.note(_NOTES[direction].format(error))

    def attempt(self, direction: Direction, do: Callable[[], _Result], otherwise: _Result) -> _Result:
        """Return what `do` returns, or `otherwise` where the remote fails or has failed before."""
        if not self.works(direction):
            if self.spec.required:
                self.refuse(direction, self._off[direction])
            return otherwise
        try:
            return do()
        except RemoteError as error:
            self.refuse(direction, error)
            return otherwise
