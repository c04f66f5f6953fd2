"""The crew of a Ray cluster: each action is one task, on the node that has room for it.

Stages with network or secrets run on the driver's machine, where the credentials are, by a local crew.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ...errors import DeployRunnerError, StageError, StoreError, UsageError
from ...store.cas import Store
from ...store.folders import unread
from ...store.remote import RemoteError
from ...store.shared import SharedStore
from ...types import Artifact, Executor, PathSource, RunOptions, StageNode, StageResult
from ..keys import KeyEnvironment
from .action import Action, Project, record_for
from .crew import LocalCrew
from .crews import Audience, Ended, stays_here
from .parcels import Address, Returned, Travelling, pack, sealed, travelling
from .ray_cluster import Cluster, Outcome

__all__ = ["RayCrew", "address_of"]

_FEWEST_AHEAD, _MOST_AHEAD = 64, 512
"""How many actions Ray has at once: enough that no node waits, few enough for the locks that are held."""
_CANCELLED_S, _KILLED_S = 15.0, 10.0
_LINES_LATE_S = 5.0
_NEAR_BYTES = 1 << 20
"""A smaller input is not worth waiting for a certain node."""
_SENDERS = 4


@dataclass(slots=True)
class _Flight:
    """An action that was given to Ray, or is about to be."""

    action: Action
    files: list[Travelling] = field(default_factory=list)
    submitted: bool = False
    resent: bool = False
    started: bool = False
    node: str = ""
    batches: Counter[str] = field(default_factory=Counter)
    returned: tuple[Returned, Outcome] | None = None
    deadline_s: float = 0.0
    stopping: str = ""
    kills: int = 0


def address_of(store: Store, executor: Executor) -> Address:
    """Return which stores the nodes use. Raises UsageError where they have none in common with the driver.

    A Ray that is started on this machine uses the driver's own.
    """
    remote = None
    if isinstance(store, SharedStore):
        spec, own = store.link.spec, store.link.signatures.public_key
        remote = spec._replace(public_keys=(*spec.public_keys, *([own] if own else [])))
    if not executor.address:
        home, *protected = map(os.path.abspath, store.homes)
        return Address(home, protected[0] if protected else "", remote, sends=False)
    if remote is None or not remote.push:
        fix = "add `cache: {remote: s3://bucket/prefix, push: true}`"
        raise UsageError("a Ray cluster needs a shared cache that may be written", fix=fix)
    return Address("", "", remote, sends=True)


class RayCrew:
    """Gives actions to a Ray cluster; `local` runs those that need this machine."""

    def __init__(
        self,
        project: Project,
        store: Store,
        keys: KeyEnvironment,
        options: RunOptions,
        executor: Executor,
        audience: Audience,
        local: LocalCrew,
        preload: Mapping[bool, Sequence[str]],
    ) -> None:
        self._project = project
        self._store = store
        self._keys = keys
        self._options = options
        self._executor = executor
        self._audience = audience
        self._local = local
        self._preload = preload
        self._address = address_of(store, executor)
        self._cluster: Cluster | None = None
        self._ahead = _FEWEST_AHEAD
        self._flights: dict[str, _Flight] = {}
        self._watched: dict[str, _Flight] = {}
        self._ended: list[Ended] = []
        self._there: set[str] = set()
        self._holders: dict[str, str] = {}
        self._delivered: deque[tuple[_Flight, tuple[Artifact, ...], str]] = deque()
        self._senders = ThreadPoolExecutor(_SENDERS, "to-nodes")

    @property
    def busy(self) -> bool:
        """Say whether an action has been added that `wait` has not returned."""
        return bool(self._flights or self._ended or self._local.busy)

    # Starting --------------------------------------------------------------------------------

    def prepare(self, node: StageNode) -> None:
        """Connect to the cluster. Raises UsageError where that fails."""
        if self._cluster is None and not stays_here(node):
            self._cluster = Cluster(
                self._executor.address, cpu=self._options.cpu or len(os.sched_getaffinity(0)),
                memory_bytes=self._options.memory_bytes, wake=self._local.wake,
            )  # fmt: skip
            self._ahead = min(_MOST_AHEAD, max(_FEWEST_AHEAD, 2 * self._cluster.cpus))

    def room(self, node: StageNode, beside: Sequence[StageNode] = ()) -> bool:
        """Say whether a stage may be given to the cluster, or run here if it has to."""
        if stays_here(node):
            return self._local.room(node, [other for other in beside if stays_here(other)])
        return len(self._flights) + sum(not stays_here(other) for other in beside) < self._ahead

    def add(self, action: Action) -> None:
        """Give an action to the cluster. Raises DeployRunnerError if no node can run it."""
        if stays_here(action.node):
            self._local.add(action)
            return
        assert self._cluster is not None
        if lacks := self._cluster.most(action.node.resources):
            if not self._executor.autoscaling:
                fix = "add such a node, or set executor.autoscaling if the cluster adds nodes itself"
                raise StageError(f"it needs {'; '.join(lacks)}", fix=fix)
            self._audience.log(action, f"waits for a node: it needs {'; '.join(lacks)}")
        flight = _Flight(action)
        try:
            flight.files = list(
                travelling(action.node, action.decision.inputs, self._project.root, self._digest)
            )
        except OSError as error:
            message = f"{error.filename} can't be read: {error.strerror}"
            raise StageError(message, fix=unread(error)) from None
        self._flights[action.name] = flight
        self._deliver(flight)

    def _digest(self, path: str) -> str:
        return self._store.memo.digest(path)

    def _deliver(self, flight: _Flight) -> None:
        """See that the shared cache has what an action reads, then submit it."""
        needed = [*flight.action.decision.inputs.values(), *(file.artifact for file in flight.files)]
        if self._address.sends and any(artifact.digest not in self._there for artifact in needed):
            self._senders.submit(self._send, flight)
        else:
            self._submit(flight)

    def _send(self, flight: _Flight) -> None:
        """Send what an action reads, in a thread of its own."""
        store = self._store
        assert isinstance(store, SharedStore)
        lost: list[Artifact] = []
        error = ""
        try:
            for file in flight.files:
                if file.artifact.digest not in self._there:
                    self._send_file(store, file)
            for name, artifact in flight.action.decision.inputs.items():
                if artifact.digest in self._there or isinstance(flight.action.node.inputs[name], PathSource):
                    continue
                try:
                    store.send(artifact)
                    self._there.add(artifact.digest)
                except RemoteError:
                    raise
                except StoreError:
                    lost.append(artifact)
        except (DeployRunnerError, OSError) as problem:
            error = f"its inputs can't be sent to the shared cache: {problem}"
        self._delivered.append((flight, tuple(lost), error))
        self._local.wake()

    def _send_file(self, store: SharedStore, file: Travelling) -> None:
        """Send a file or folder of the project: a copy of it, which nobody changes meanwhile."""
        if store.state(file.artifact) != "present":
            from ...store.copies import copy_path

            copy = store.new_tmp() / f"copy-{os.urandom(8).hex()}"
            copy_path(file.source, copy, file.artifact, os.path.dirname(file.source))
            store.ingest(copy)
        store.send(file.artifact)
        self._there.add(file.artifact.digest)

    def _submit(self, flight: _Flight) -> None:
        action = flight.action
        assert self._cluster is not None
        parcel = pack(
            action, self._project, flight.files, self._keys, self._address, self._preload,
            require_sandbox=self._options.require_sandbox, keep_workdir=self._options.keep_workdirs,
        )  # fmt: skip
        flight.submitted = True
        self._cluster.submit(action.name, sealed(parcel), action.node.resources, self._near(action))

    def _near(self, action: Action) -> str:
        """Return the node that holds an action's largest input, if that is known and large."""
        inputs = action.decision.inputs.values()
        largest = max(inputs, key=lambda artifact: artifact.size, default=None)
        if largest is None or largest.size < _NEAR_BYTES:
            return ""
        return self._holders.get(largest.digest, "")

    # Watching --------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None) -> list[Ended]:
        """Return the actions that have ended; wait for one, until the time is over or for `wake`."""
        self._hear()
        if not self._ended:
            moments = [flight.deadline_s for flight in self._watched.values()]
            limits = [max(0.0, moment - time.monotonic()) for moment in moments]
            self._ended += self._local.wait(
                min([*limits, *([] if timeout_s is None else [timeout_s])], default=None)
            )
            self._hear()
        ended, self._ended = self._ended, []
        return ended

    def wake(self) -> None:
        """Have `wait` return. It may be called from a signal handler or from another thread."""
        self._local.wake()

    def _hear(self) -> None:
        """Take in what has happened in the cluster."""
        while self._delivered:
            self._continue(*self._delivered.popleft())
        if self._cluster is None or not self._flights:
            return
        for batch in self._cluster.mail():
            flight = self._flights.get(batch.name)
            if flight is not None:
                flight.batches[batch.attempt] += 1
                self._start(flight, batch.node)
                for line in batch.lines:
                    self._audience.log(flight.action, line)
        for outcome in self._cluster.outcomes():
            self._take(outcome)
        for flight in list(self._watched.values()):
            self._check(flight)

    def _start(self, flight: _Flight, node: str) -> None:
        if not flight.started:
            flight.started = True
            self._audience.started(flight.action)
        if node and flight.node and node != flight.node:
            self._audience.log(flight.action, f"the node {flight.node} has ended: it runs again on {node}")
        flight.node = node or flight.node

    def _continue(self, flight: _Flight, lost: tuple[Artifact, ...], error: str) -> None:
        """Submit an action whose inputs have been sent, or end it."""
        if flight.stopping or error or lost:
            self._end(flight, self._failed(flight, error), lost=() if flight.stopping else lost)
        else:
            self._submit(flight)

    def _take(self, outcome: Outcome) -> None:
        flight = self._flights.get(outcome.name)
        if flight is None:
            return
        if not outcome.returned:
            self._end(flight, self._failed(flight, outcome.error or "Ray cancelled it"))
            return
        returned: Returned = pickle.loads(outcome.returned)
        flight.returned = (returned, outcome)
        self._watch(flight, _LINES_LATE_S)

    def _watch(self, flight: _Flight, seconds: float) -> None:
        """Look after a flight from now on, and after so many seconds at the latest."""
        flight.deadline_s = time.monotonic() + seconds
        self._watched[flight.action.name] = flight

    def _check(self, flight: _Flight) -> None:
        """End a flight that has returned, with all its lines; kill one that doesn't end when it should."""
        late = time.monotonic() >= flight.deadline_s
        if flight.returned is not None:
            returned, outcome = flight.returned
            if late or flight.batches[outcome.attempt] >= returned.batches:
                self._land(flight, returned, outcome)
        elif late and self._cluster is not None:
            if flight.kills:
                self._end(flight, self._failed(flight, ""))
                return
            flight.kills += 1
            self._watch(flight, _KILLED_S)
            self._cluster.cancel(flight.action.name, force=True)

    def _land(self, flight: _Flight, returned: Returned, outcome: Outcome) -> None:
        action, decision = flight.action, flight.action.decision
        result = returned.result._replace(id=action.node.id, key=decision.key)
        result = result._replace(reason=result.reason or decision.reason)
        if returned.started:
            self._start(flight, returned.node)
        for line in returned.lines:
            self._audience.log(action, line)
        files = {file.artifact for file in flight.files}
        if files & set(returned.lost) and not flight.resent and not flight.stopping:
            flight.resent, flight.returned = True, None
            del self._watched[action.name]
            self._there -= {artifact.digest for artifact in returned.lost}
            self._deliver(flight)
            return
        for artifact in result.outputs.values():
            self._holders[artifact.digest] = outcome.node_id
            self._there.add(artifact.digest)
        if result.state == "interrupted" and flight.stopping != "interrupted":
            result = self._failed(flight, flight.stopping or "Ray cancelled it")
        if returned.evidence is not None:
            result = self._with_evidence(action, result, returned.evidence)
        lost = () if files & set(returned.lost) else returned.lost
        self._end(flight, result, lost=lost)

    def _with_evidence(self, action: Action, result: StageResult, evidence: Artifact) -> StageResult:
        """Bring what a failed gate left to this machine."""
        place = action.folder / "made"
        try:
            if self._store.fetch(evidence):
                action.folder.mkdir(parents=True, exist_ok=True)
                self._store.materialise(evidence, place)
                return result._replace(evidence=str(place))
        except StoreError as error:
            self._audience.log(action, f"what the gate left can't be brought here: {error}")
        return result

    def _failed(self, flight: _Flight, error: str) -> StageResult:
        action = flight.action
        known = StageResult(action.node.id, "failed", action.decision.key, reason=action.decision.reason)
        if flight.stopping == "interrupted":
            return known._replace(state="interrupted", reason="the run was interrupted")
        seconds = time.monotonic() - action.started_s
        return known._replace(error=flight.stopping or error, exit_code=1, seconds=seconds)

    def _end(self, flight: _Flight, result: StageResult, *, lost: tuple[Artifact, ...] = ()) -> None:
        action = flight.action
        del self._flights[action.name]
        self._watched.pop(action.name, None)
        record = None
        if result.state in ("ran", "healed"):
            record = record_for(action, result)
            if self._address.sends:
                record = record._replace(remote="there")
        self._ended.append(Ended(action, result, record, lost))

    # Ending ----------------------------------------------------------------------------------

    def stop(self, action: Action, why: str) -> None:
        """End an action in the cluster: as gracefully as here, and after a while by force."""
        flight = self._flights.get(action.name)
        if flight is None:
            self._local.stop(action, why)
        elif not flight.stopping:
            flight.stopping = why
            if flight.submitted and self._cluster is not None and flight.returned is None:
                self._watch(flight, _CANCELLED_S)
                self._cluster.cancel(action.name)

    def close(self) -> None:
        """End everything that still runs, here and in the cluster."""
        self._senders.shutdown(cancel_futures=True)
        try:
            if self._cluster is not None:
                self._cluster.close()
        finally:
            self._local.close()
