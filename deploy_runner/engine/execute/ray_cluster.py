"""The Ray cluster of a run: connect, submit, cancel, hear what the tasks say. Ray is imported here alone."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError
from ...types import Resources
from .relay import Relay

__all__ = ["Batch", "Cluster", "Outcome"]

_REACHED_S = 5.0
_RETRIES = 3
"""How often a task runs again whose node or Ray worker has died."""
_SCHEME = "ray://"
_DEFAULT_PORTS = {True: 10001, False: 6379}
_MOST_WAITING = 1000
_POSTED_S = 30.0
_OBJECT_STORE_BYTES = 78643200
"""The least that Ray takes: nothing large travels through it."""


class Batch(NamedTuple):
    """Lines of one action. `attempt` tells one run of it from another, on another node."""

    name: str
    attempt: str
    node: str
    lines: list[str]


class Outcome(NamedTuple):
    """How a task ended: what it `returned`, or the `error`; neither if it was cancelled.

    `node_id` is where it ran, `attempt` as in a Batch.
    """

    name: str
    returned: bytes = b""
    attempt: str = ""
    node_id: str = ""
    error: str = ""


class Cluster:
    """A connection to a cluster, or to a Ray started on this machine where `address` is empty.

    `wake` is called from other threads whenever `outcomes` or `mail` have something. Raises UsageError
    where there is no such cluster, or one that doesn't fit.
    """

    def __init__(self, address: str, *, cpu: int, memory_bytes: int | None, wake: Callable[[], None]) -> None:
        if address:
            _reach(address)
        if not address or _has_token():  # Ray looks for its token by itself in some of its ways to connect.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        ray = _import()
        self._ray = ray
        self._wake = wake
        self._lock = threading.Lock()
        self._closed = False
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, address, cpu, memory_bytes)
        self._outcomes: deque[Outcome] = deque()
        self._mail: deque[Batch] = deque()
        self._refs: dict[str, Any] = {}
        self._task = ray.remote(max_retries=_RETRIES, retry_exceptions=False)(_perform)
        self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, max_restarts=-1).remote()
        self._polling = False
        self._nodes: list[Mapping[str, float]] = []

    def most(self, resources: Resources) -> list[str]:
        """Return which of these resources no node has as many of, in words; nothing if one has them all."""
        wanted = _wanted(resources)
        if not any(_has(node, wanted) for node in self._nodes):
            self._nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(_has(node, wanted) for node in self._nodes):
            return []
        lacks = []
        for name, amount in wanted.items():
            largest = max((node.get(name, 0.0) for node in self._nodes), default=0.0)
            if largest < amount:
                lacks.append(f"{_shown(name, amount)}, and the largest node has {_shown(name, largest)}")
        return lacks or ["these resources together, and no node has them all"]

    @property
    def cpus(self) -> int:
        """The CPUs of all nodes."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def submit(self, name: str, parcel: bytes, resources: Resources, node_id: str) -> None:
        """Have a task run, on that node rather than on another one if it is free."""
        options: dict[str, Any] = {"num_cpus": resources.cpu, "name": name}
        if resources.memory_bytes:
            options["memory"] = resources.memory_bytes
        if resources.gpu:
            options["num_gpus"] = resources.gpu
        if resources.custom:
            options["resources"] = dict(resources.custom)
        if node_id:
            strategies = self._ray.util.scheduling_strategies
            options["scheduling_strategy"] = strategies.NodeAffinitySchedulingStrategy(
                node_id, soft=True, _spill_on_unavailable=True
            )
        ref = self._task.options(**options).remote(name, parcel, self._mailbox)
        self._refs[name] = ref
        ref.future().add_done_callback(lambda future: self._ended(name, future))

    def _ended(self, name: str, future: Any) -> None:
        try:
            outcome = Outcome(name, *future.result())
        except BaseException as error:
            outcome = Outcome(name, error=self._sentence(error))
        self._outcomes.append(outcome)
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            if not self._closed:
                self._wake()

    def _sentence(self, error: BaseException) -> str:
        known = self._ray.exceptions
        if isinstance(error, known.TaskCancelledError):
            return ""
        if isinstance(error, known.OutOfMemoryError):
            return "Ray ended it because its node ran out of memory (set resources.memory)"
        if isinstance(error, known.WorkerCrashedError):
            return "Ray's worker process was killed on its node, or the node has ended, several times"
        text = str(error)
        if "No module named 'deploy_runner'" in text:
            return "deploy-runner is not installed on a node of the cluster (install it on every node)"
        last = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        return f"Ray couldn't run it: {last[-1][:300]}"

    def outcomes(self) -> list[Outcome]:
        """Return the tasks that have ended since."""
        found = []
        while self._outcomes:
            found.append(self._outcomes.popleft())
            self._refs.pop(found[-1].name, None)
        return found

    def mail(self) -> list[Batch]:
        """Return the lines that have arrived since, and wait for more in the background."""
        found = []
        while self._mail:
            found.append(self._mail.popleft())
        if not self._polling:
            self._polling = True
            self._mailbox.take.remote().future().add_done_callback(self._mailed)
        return found

    def _mailed(self, future: Any) -> None:
        with suppress(Exception):  # The mailbox's node has ended: a new one is made.
            self._mail.extend(Batch(*row) for row in future.result())
        self._polling = False
        self._tell()

    def cancel(self, name: str, *, force: bool = False) -> None:
        """End a task: one that runs is interrupted, or killed with `force`."""
        if name in self._refs:
            with suppress(Exception):  # It has ended meanwhile.
                self._ray.cancel(self._refs[name], force=force)

    def close(self) -> None:
        """Cancel what still runs, and disconnect, which ends everything of this run in the cluster."""
        with self._lock:
            self._closed = True
        for name in list(self._refs):
            self.cancel(name, force=True)
        with suppress(Exception):
            self._ray.kill(self._mailbox)
        if self._ours:
            with suppress(Exception):
                self._ray.shutdown()


def _wanted(resources: Resources) -> dict[str, float]:
    wanted = {"CPU": float(resources.cpu), "memory": float(resources.memory_bytes)}
    wanted |= {"GPU": float(resources.gpu), **resources.custom}
    return {name: amount for name, amount in wanted.items() if amount}


def _has(node: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= amount for name, amount in wanted.items())


def _shown(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / 2**30:.3g} GiB of memory" if amount else "no memory"
    kind = {"CPU": "CPUs", "GPU": "GPUs"}.get(name, f"of the resource {name!r}")
    return f"{amount:g} {kind}" if amount else f"none {kind}" if kind.startswith("of") else f"no {kind}"


# Connecting ---------------------------------------------------------------------------------------


def _import() -> Any:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError(
            "the executor ray needs the extra `ray`", fix='pip install "deploy-runner[ray]"'
        ) from None
    return ray


def _connect(ray: Any, address: str, cpu: int, memory_bytes: int | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address:
            with _silence():
                ray.init(address, **quiet)
            return
        with _silence():
            ray.init(
                "local", num_cpus=cpu, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES,
                _memory=memory_bytes, **quiet,
            )  # fmt: skip
    except UsageError:
        raise
    except Exception as error:
        message, fix = _refusal(address, str(error))
        raise UsageError(message, fix=fix) from None


@contextmanager
def _silence() -> Iterator[None]:
    """Drop what is written to standard error meanwhile: Ray's C++ parts do that whatever they are told."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _has_token() -> bool:
    known = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(name in os.environ for name in known) or (Path.home() / ".ray" / "auth_token").is_file()


def _reach(address: str) -> None:
    """Raise UsageError unless something listens at the address: Ray itself would wait for long."""
    if address == "auto":
        return
    client = address.startswith(_SCHEME)
    host, colon, port = address.removeprefix(_SCHEME).partition("/")[0].rpartition(":")
    if not colon:
        host, port = port, str(_DEFAULT_PORTS[client])
    if not host or not port.isdecimal():
        raise UsageError(f"{address!r} is not the address of a Ray cluster", fix="use ray://HOST:10001")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"no Ray cluster answers at {address}: {reason}", fix="check --ray-address"
        ) from None


_VERSIONS = re.compile(r"Ray: *(\S+)\s+Python: *(\S+)")


def _refusal(address: str, text: str) -> tuple[str, str]:
    """Return in one sentence why Ray doesn't connect, and how to fix it."""
    where = f"the Ray cluster at {address}" if address else "Ray"
    versions = _VERSIONS.findall(text)
    if len(versions) > 1 and "ersion mismatch" in text:
        (ray, python), (our_ray, our_python) = versions[:2]
        return (
            f"{where} has Ray {ray} and Python {python}, this machine Ray {our_ray} and Python {our_python}",
            "install the same versions",
        )
    if "token" in text.lower() or "nauthenticated" in text:
        return f"{where} wants a token", "copy it to ~/.ray/auth_token, or set RAY_AUTH_TOKEN"
    if "ray[client]" in text:
        return f"{where} needs Ray's client", 'pip install "ray[client]"'
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    return f"{where} can't be used: {lines[-1][:300]}", "" if not address else "check --ray-address"


# In the cluster -----------------------------------------------------------------------------------


class _Mailbox:
    """Keeps what the tasks say until the driver takes it: an actor without a CPU of its own."""

    def __init__(self) -> None:
        import asyncio

        self._batches: list[tuple[Any, ...]] = []
        self._changed = asyncio.Condition()

    async def put(self, *batch: Any) -> None:
        """Keep a batch; wait where the driver doesn't keep up."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._batches) < _MOST_WAITING)
            self._batches.append(batch)
            self._changed.notify_all()

    async def take(self) -> list[tuple[Any, ...]]:
        """Return all batches; wait for the first."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._batches))
            taken, self._batches = self._batches, []
            self._changed.notify_all()
            return taken


def _perform(name: str, parcel: bytes, mailbox: Any) -> tuple[bytes, str, str]:
    """Run a parcel in the process for this: what Ray calls in its worker process."""
    ray = _import()
    global _relay
    if _relay is None or not _relay.works:
        _relay = Relay(ray.util.get_node_ip_address())
    attempt, node = os.urandom(8).hex(), _relay.node
    last: Any = None

    def send(lines: list[str]) -> None:
        """Send a batch after the one before. Not by `ray.get`: Ray would give this task's CPU to another."""
        nonlocal last
        with suppress(Exception):  # The mailbox is being made again on another node.
            if last is not None:
                last.result(timeout=_POSTED_S)
        last = mailbox.put.remote(name, attempt, node, lines).future()

    return _relay.run(parcel, send), attempt, ray.get_runtime_context().get_node_id()


_relay: Relay | None = None
