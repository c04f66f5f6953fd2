"""From a decision to an action of a crew, and from its end to a result: the same for every crew.

A stage waits here for its action's lock, under which it is decided again: another run may have built it
meanwhile. The lock is released only when the record is stored.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from ...errors import DeployRunnerError
from ...store.actions import ActionRecord
from ...store.cas import Claim, Store
from ...store.files import writing
from ...store.locks import Lock
from ...store.removal import remove_tree
from ...types import Artifact, Event, Graph, RunOptions, StageNode, StageResult, State
from ..plan import Decision, Outputs, Planner
from .action import Action, progress_event, secrets_of
from .aside import Aside
from .crews import Audience, Crew, Ended, stays_here
from .interrupts import Interrupts
from .live import credentials_of
from .redact import Redactor
from .worker import PROGRESS

__all__ = ["Dispatch", "Lost"]

_POLL_S = 0.05


@dataclass(slots=True)
class _Waiting:
    """A stage that waits for its action's lock, or for room in the crew."""

    node: StageNode
    decision: Decision
    upstream: Mapping[str, Outputs]
    forced: bool
    lock: Lock
    claim: Claim | None = None
    told: bool = False

    @property
    def need(self) -> tuple[object, ...]:
        """Return what is the same for stages that have room at the same time."""
        node = self.node
        limited = node.base if node.max_parallel else ""
        return (limited, stays_here(node), *node.resources[:-1], *node.resources.custom.items())


class Lost(NamedTuple):
    """A stage that can't run: these inputs have to be made again first."""

    stage: str
    inputs: tuple[Artifact, ...]


class Dispatch:
    """Gives stages to a crew; `wait` returns the results as they come. `hire` makes the crew."""

    def __init__(
        self,
        graph: Graph,
        planner: Planner,
        store: Store,
        options: RunOptions,
        emit: Callable[[Event], None],
        run_folder: Path,
        environ: Mapping[str, str],
        hire: Callable[[Audience], Crew],
        interrupts: Interrupts,
    ) -> None:
        self._graph = graph
        self._planner = planner
        self._store = store
        self._options = options
        self._emit = emit
        self._run_folder = run_folder
        self._environ = environ
        self._waiting: dict[tuple[object, ...], list[tuple[int, _Waiting]]] = {}  # A heap for each need.
        self._arrived = 0
        self._running: dict[str, tuple[Action, Lock]] = {}
        self._count = 0
        self._done: list[StageResult | Lost] = []
        self._trash: list[Path] = []
        self._unrecorded: list[tuple[Lock, Action, ActionRecord | None]] = []
        self._crew = hire(self)
        self._aside: Aside[None] = Aside(self._crew.wake, threads=1)
        store.tell_claims(self._crew.wake)
        self._interrupts = interrupts
        interrupts.answer(self._crew.wake)

    @property
    def busy(self) -> bool:
        """Say whether anything is running, waiting, or to be fetched."""
        return bool(self._waiting or self._running or self._done)

    def drop_waiting(self, state: State, reason: str) -> None:
        """End what has not started yet with this state."""
        for _, waiting in sorted(chain.from_iterable(self._waiting.values()), key=itemgetter(0)):
            self._done.append(StageResult(waiting.node.id, state, reason=reason))
            self._give_up(waiting)
        self._waiting.clear()

    def _stop_all(self) -> None:
        self.drop_waiting("interrupted", "the run was interrupted")
        for action, _ in self._running.values():
            self._crew.stop(action, "interrupted")

    # Starting --------------------------------------------------------------------------------

    def add(
        self, node: StageNode, decision: Decision, upstream: Mapping[str, Outputs], *, forced: bool
    ) -> None:
        """Take a stage in; it starts as soon as its lock and its resources are free.

        Raises UsageError where the crew can't be used at all.
        """
        self._crew.prepare(node)
        waiting = _Waiting(node, decision, upstream, forced, self._store.lock(decision.key))
        self._arrived += 1
        heapq.heappush(self._waiting.setdefault(waiting.need, []), (self._arrived, waiting))
        self._start_ready()

    def _room(self, node: StageNode, beside: Sequence[StageNode] = ()) -> bool:
        """Say whether a stage may be started now, and these others too."""
        if node.max_parallel:
            started = [*(action.node for action, _ in self._running.values()), *beside]
            if sum(other.base == node.base for other in started) >= node.max_parallel:
                return False
        return self._crew.room(node, beside)

    def _start_ready(self) -> None:
        """Start what can be started, in the order of arrival; one that must wait doesn't hold up others."""
        claimed: list[StageNode] = []
        kept: list[tuple[int, _Waiting]] = []
        heads = [(heap[0][0], need) for need, heap in self._waiting.items()]
        heapq.heapify(heads)
        try:
            while heads:
                _, need = heapq.heappop(heads)
                heap = self._waiting[need]
                if not self._room(heap[0][1].node, claimed):
                    continue
                entry = heapq.heappop(heap)
                if heap:
                    heapq.heappush(heads, (heap[0][0], need))
                if not self._try_start(entry[1], claimed):
                    kept.append(entry)
        finally:
            for entry in kept:
                heapq.heappush(self._waiting[entry[1].need], entry)
            self._waiting = {need: heap for need, heap in self._waiting.items() if heap}

    def _try_start(self, waiting: _Waiting, claimed: list[StageNode]) -> bool:
        """Start a stage, or end it where that fails; say whether it waits no longer."""
        try:
            if not waiting.lock.try_acquire():
                return False
            if self._is_ours(waiting):
                self._start(waiting)
                return True
            if not waiting.told:  # More than can be started is not claimed: other machines may make it.
                claimed.append(waiting.node)
        except DeployRunnerError as error:
            self._give_up(waiting)
            self._done.append(_failed(waiting.node, waiting.decision, error))
            return True
        return False

    def _is_ours(self, waiting: _Waiting) -> bool:
        """Say whether no other machine makes the action, as far as that is known by now."""
        decision = waiting.decision
        if waiting.forced or decision.state == "converge":
            return True
        is_new = waiting.claim is None and decision.state == "miss"
        if is_new and self._store.records.get(decision.key) is not None:
            return True  # Another run on this machine has made it.
        waiting.claim = self._store.claim(decision.key)
        if waiting.claim == "theirs" and not waiting.told:
            waiting.told = True
            text = f"{waiting.node.id}: another machine is making it"
            self._emit(Event("run-note", time.time(), waiting.node.id, text))
        return waiting.claim in ("ours", "made")

    def _give_up(self, waiting: _Waiting) -> None:
        """Let others make what has not been started here."""
        if waiting.claim is not None:
            self._store.settle(waiting.decision.key, None)
        waiting.lock.release()

    def _start(self, waiting: _Waiting) -> None:
        """Begin an action whose lock is held, unless another run has done it since the decision was taken."""
        node, decision = waiting.node, waiting.decision
        if decision.state != "miss" or self._store.records.get(decision.key) is not None:
            decision = self._planner.decide(node, waiting.upstream)
        if decision.state == "hit" and not waiting.forced:
            self._give_up(waiting)
            record = decision.record
            assert record is not None
            self._done.append(StageResult(
                node.id, "hit", decision.key, record.outputs, record.figures,
                reason="built by another run"))  # fmt: skip
            return
        reason = "forced" if waiting.forced else self._planner.why(node, decision)
        decision = decision._replace(reason=reason)
        self._count += 1
        folder = self._store.new_tmp() / f"{self._count:04d}"
        secrets = secrets_of(node, self._environ)
        if self._graph.live and node.network:
            secrets = credentials_of(self._environ) | secrets
        action = Action(node, decision, folder, Redactor(secrets))
        self._running[action.name] = (action, waiting.lock)
        try:
            self._crew.add(action)
        except BaseException:
            del self._running[action.name]
            self._trash.append(folder)
            raise

    def started(self, action: Action) -> None:
        """Tell the audience of the run that an action has started."""
        self._emit(Event("stage-started", time.time(), action.node.id, text=action.decision.reason))

    def log(self, action: Action, line: str) -> None:
        """Store a line that an action printed, and pass it on."""
        if line.startswith(PROGRESS):
            self._emit(progress_event(action.node.id, line))
            return
        path = self._run_folder / "logs" / f"{action.node.id}.log"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._emit(Event("stage-log", time.time(), action.node.id, line))

    # Ending ----------------------------------------------------------------------------------

    def wait(self) -> list[StageResult | Lost]:
        """Wait until at least one stage has ended, and return the results."""
        while not self._done:
            if self._interrupts.come:
                self._stop_all()
            self._start_ready()
            if self._done:
                break
            self._tidy()
            self._aside.take()
            # Another run may hold a lock: flock(2) can't be selected on.
            blocked = any(self._room(heap[0][1].node) for heap in self._waiting.values())
            for ended in self._crew.wait(_POLL_S if blocked else None):
                self._take(ended)
        done, self._done = self._done, []
        return done

    def _take(self, ended: Ended) -> None:
        action, result = ended.action, ended.result
        _, lock = self._running.pop(action.name)
        self._unrecorded.append((lock, action, ended.record))
        if result.evidence:
            place = self._run_folder / "refused" / action.node.id
            with writing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.rename(result.evidence, place)
            result = result._replace(evidence=str(place))
        if self._options.keep_workdirs and action.work.exists():
            kept = self._run_folder / "workdirs" / action.node.id
            with writing(kept):
                kept.parent.mkdir(parents=True, exist_ok=True)
                action.work.rename(kept)
            result = result._replace(workdir=str(kept))
        self._trash.append(action.folder)
        self._done.append(Lost(action.node.id, ended.lost) if ended.lost else result)

    def _tidy(self) -> None:
        """Have records put and folders removed: now, because the stages that waited have started."""
        while self._unrecorded:
            self._aside.do(partial(self._record, *self._unrecorded.pop()))
        while self._trash:
            self._aside.do(partial(remove_tree, self._trash.pop()))

    def _record(self, lock: Lock, action: Action, record: ActionRecord | None) -> None:
        """Put a record; its lock is given back only then, so that no other run does the work again."""
        try:
            if record is not None:
                self._store.records.put(record)
            self._store.settle(action.decision.key, record, again=action.decision.state == "heal")
        finally:
            lock.release(remove=True)

    def close(self) -> None:
        """Stop what still runs and release the locks. An interrupt meanwhile is only noted."""
        self._interrupts.note()
        self._store.tell_claims(lambda: None)
        try:
            self._tidy()
            self._aside.close()
            self._aside.take()
        finally:
            self._crew.close()
            for _, lock in self._running.values():
                lock.release()


def _failed(node: StageNode, decision: Decision, error: DeployRunnerError) -> StageResult:
    return StageResult(node.id, "failed", decision.key, error=str(error), exit_code=error.exit_code)
