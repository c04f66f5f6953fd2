"""The process on a node of a cluster that runs the actions which are sent there.

Ray's own worker process starts one and relays to it; nothing of Ray is imported here, and nothing of Ray's
path, threads or signals reaches a stage. The same crew as on a driver's machine runs the actions, one at a
time, from fork servers that stay warm. When the socket closes, everything ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from ...errors import DeployRunnerError, StageError, StoreError
from ...store.cas import Store
from ...store.namespace import HOME_VARIABLE, configured_home
from ...store.opening import open_store
from ...store.removal import remove_tree
from ...store.shared import SharedStore
from ...types import Artifact, RunOptions, StageResult
from ..keys import KeyEnvironment
from .action import Action
from .crew import LocalCrew
from .fork import ForkServers
from .parcels import Address, Parcel, Returned, differences, lay_out, opened
from .redact import Redactor

__all__ = ["home_of_node", "main"]

_SENT_EVERY_S = 0.1
_SENT_LINES = 500
_SMALL_BYTES = 64 << 10


def home_of_node(environ: Mapping[str, str]) -> Path:
    """Return the folder of a node's own store: `DEPLOY_RUNNER_HOME`, or in the user's cache folder."""
    if environ.get(HOME_VARIABLE, "").strip():
        return configured_home(Path(), environ)
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME') or '/tmp'}/.cache"
    return Path(cache) / "deploy-runner"


class _Post:
    """What an action says, gathered for a moment: `started` and its lines."""

    def __init__(self, channel: Connection) -> None:
        self._channel = channel
        self._due_s = 0.0
        self.has_started = False
        self.lines: list[str] = []
        self.batches = 0

    def started(self, action: Action) -> None:
        self.has_started = True
        self._due_s = self._due_s or time.monotonic() + _SENT_EVERY_S

    def log(self, action: Action, line: str) -> None:
        self.lines.append(line)
        self._due_s = self._due_s or time.monotonic() + _SENT_EVERY_S

    def timeout_s(self) -> float | None:
        """Return how long nothing has to be sent."""
        return max(0.0, self._due_s - time.monotonic()) if self._due_s else None

    def send(self) -> None:
        """Send what there is, if it has waited for long enough."""
        if self._due_s and (time.monotonic() >= self._due_s or len(self.lines) >= _SENT_LINES):
            self._channel.send(("lines", self.lines))
            self.lines, self._due_s = [], 0.0
            self.batches += 1


class _Desk:
    """The audience of the crews: passes on to the post of the action that runs."""

    post: _Post

    def started(self, action: Action) -> None:
        self.post.started(action)

    def log(self, action: Action, line: str) -> None:
        self.post.log(action, line)


class _Place(NamedTuple):
    """What stays from one action to the next, with warm fork servers."""

    address: Address
    require_sandbox: bool


class _Node:
    def __init__(self, channel: Connection, name: str) -> None:
        self._channel = channel
        self._name = name
        self._inbox: queue.SimpleQueue[tuple[bytes, dict[str, str]] | None] = queue.SimpleQueue()
        self._stopped = self._closed = False
        self._environ: dict[str, str] = dict(os.environ)
        self._desk = _Desk()
        self._crew: LocalCrew | None = None
        self._servers: ForkServers
        self._place: _Place | None = None
        self._stores: dict[Address, Store] = {}
        self._stack = ExitStack()
        self._count = 0
        self._trash: list[Path] = []

    def serve(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        with self._stack:
            while (asked := self._inbox.get()) is not None:
                data, environ = asked
                self._environ.update(environ)
                with suppress(OSError):
                    self._channel.send(("ended", pickle.dumps(self._answer(data))))
                while self._trash:
                    remove_tree(self._trash.pop())
            if self._crew is not None:
                self._crew.close()

    def _listen(self) -> None:
        """Take in what comes, while the main thread works."""
        try:
            while True:
                message = self._channel.recv()
                if message[0] == "run":
                    self._stopped = False
                    self._inbox.put(message[1:])
                else:
                    self._stop()
        except (EOFError, OSError):
            self._closed = True
            self._stop()
            self._inbox.put(None)

    def _stop(self) -> None:
        self._stopped = True
        if (crew := self._crew) is not None:
            with suppress(OSError):
                crew.wake()

    # One action ------------------------------------------------------------------------------

    def _answer(self, data: bytes) -> Returned:
        self._desk.post = post = _Post(self._channel)
        try:
            returned = self._run(opened(data, self._name), post)
        except (DeployRunnerError, OSError) as error:
            returned = Returned(_failed(error))
        return returned._replace(
            started=post.has_started, lines=tuple(post.lines), batches=post.batches, node=self._name
        )

    def _run(self, parcel: Parcel, post: _Post) -> Returned:
        store = self._store(parcel.address)
        keys = KeyEnvironment(store.memo.digest)
        if lacks := differences(parcel, keys):
            fix = "install the same packages on every node, e.g. by one container image"
            raise StageError(f"the node {self._name} has {'; '.join(lacks)}", fix=fix)
        lost = [file.artifact for file in parcel.files if not store.fetch(file.artifact)]
        if lost:
            return Returned(
                _failed(StoreError("a file of the project is not in the shared cache")), tuple(lost)
            )
        folder = store.new_tmp() / f"project-{parcel.project.run}"
        node, project = lay_out(parcel, store, folder)
        crew = self._crew_for(_Place(parcel.address, parcel.require_sandbox), parcel, store, keys)
        crew.project = project
        self._count += 1
        action = Action(node, parcel.decision, store.new_tmp() / f"{parcel.name}-{self._count}", Redactor({}))
        try:
            crew.add(action)
            while not (ended := crew.wait(post.timeout_s())):
                if self._stopped:
                    crew.stop(action, "interrupted")
                post.send()
            return self._sent(parcel, store, action, ended[0].result, ended[0].lost)
        finally:
            self._trash.append(action.folder)

    def _sent(
        self, parcel: Parcel, store: Store, action: Action, result: StageResult, lost: tuple[Artifact, ...]
    ) -> Returned:
        """Send what an action made to the shared cache, and say what that is."""
        evidence = store.ingest(Path(result.evidence)) if result.evidence else None
        made = [*result.outputs.values(), *([evidence] if evidence else [])]
        if parcel.address.sends and isinstance(store, SharedStore):
            for artifact in made:  # To ask whether a small one exists takes as long as to send it.
                store.send(artifact, again=artifact.size <= _SMALL_BYTES)
        if parcel.keep_workdir:
            kept = store.home / "workdirs" / parcel.project.run / action.node.id
            kept.parent.mkdir(parents=True, exist_ok=True)
            action.work.rename(kept)
            result = result._replace(workdir=f"{self._name}:{kept}")
        return Returned(result._replace(evidence=""), lost, evidence)

    def _store(self, address: Address) -> Store:
        if address not in self._stores:
            home = Path(address.home) if address.home else home_of_node(self._environ)
            protected = Path(address.protected) if address.protected else None
            store = open_store(home, protected=protected, remote=address.remote, environ=self._environ)
            store.sweep_tmp()
            self._stack.enter_context(store.hold())
            self._stores[address] = store
        return self._stores[address]

    def _crew_for(self, place: _Place, parcel: Parcel, store: Store, keys: KeyEnvironment) -> LocalCrew:
        """Return the crew for this place, with its warm fork servers."""
        if self._crew is None or place != self._place:
            if self._crew is not None:
                self._crew.close()
                self._crew = None
            threads = len(os.sched_getaffinity(0))
            self._servers = ForkServers(parcel.preload, store.new_tmp, threads=threads)
            options = RunOptions(require_sandbox=parcel.require_sandbox)
            self._crew = LocalCrew(
                parcel.project, store, keys, options, self._environ, self._desk, self._servers
            )
            self._place = place
        self._servers.also(parcel.preload)
        return self._crew


def _failed(error: DeployRunnerError | OSError) -> StageResult:
    """Return a failure; the driver adds which stage's it is."""
    code = error.exit_code if isinstance(error, DeployRunnerError) else 1
    return StageResult("", "failed", error=str(error), exit_code=code)


def main(arguments: list[str]) -> None:
    """Serve the relay at the other end of the socket whose number is given, under the node's name."""
    number, name = arguments
    with socket.socket(fileno=int(number)) as held, Connection(os.dup(held.fileno())) as channel:
        _Node(channel, name).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
