"""The workers of a run: wait for locks and resources, start, watch, stop, collect."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DeployRunnerError, StageError
from ...store.actions import ActionRecord
from ...store.cas import Store
from ...store.locks import Lock
from ...store.removal import remove_tree
from ...types import Event, Graph, RunOptions, StageNode, StageResult, State
from ..plan import Decision, Outputs, Planner
from .action import Action, credentials_of, finish, live_environment, progress_event, request, secrets_of
from .fork import ForkServer
from .redact import Redactor
from .sandbox import NOT_STARTED, Confinement
from .supervisor import probe
from .worker import PROGRESS

__all__ = ["Crew"]

_POLL_S = 0.05
_GRACE_S = 5.0
_BUILTIN = "deploy_runner.stages."


@dataclass(slots=True)
class _Waiting:
    """A stage that waits for its action's lock, or for resources."""

    node: StageNode
    decision: Decision
    upstream: Mapping[str, Outputs]
    forced: bool
    lock: Lock


class Crew:
    """Runs actions; `wait` returns the results as they come."""

    def __init__(
        self,
        graph: Graph,
        planner: Planner,
        store: Store,
        wanted: tuple[str, ...],
        options: RunOptions,
        emit: Callable[[Event], None],
        run_folder: Path,
        environ: Mapping[str, str],
        *,
        early: ForkServer | None,
    ) -> None:
        if options.require_sandbox:
            probe().require()
        self._options = options
        self._early = early
        self.interrupted = False
        self._graph = graph
        self._planner = planner
        self._store = store
        self._nodes = [graph.stages[id_] for id_ in wanted]
        self._emit = emit
        self._run_folder = run_folder
        self._environ = environ
        self._cpu = options.cpu or len(os.sched_getaffinity(0))
        self._memory = options.memory_bytes or 0
        self._waiting: list[_Waiting] = []
        self._running: dict[str, Action] = {}
        self._servers: dict[bool, ForkServer] = {}
        self._count = 0
        self._done: list[StageResult] = []
        self._trash: list[Path] = []
        self._unrecorded: list[tuple[Lock, ActionRecord | None]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._woken)
        self._handlers = self._catch_signals()

    @property
    def busy(self) -> bool:
        """Say whether anything is running, waiting, or to be fetched."""
        return bool(self._waiting or self._running or self._done)

    # Signals ---------------------------------------------------------------------------------

    def _catch_signals(self) -> dict[int, Any]:
        import threading

        if threading.current_thread() is not threading.main_thread():
            return {}
        return {n: signal.signal(n, self._interrupt) for n in (signal.SIGINT, signal.SIGTERM)}

    def _interrupt(self, number: int, frame: object) -> None:
        self.interrupted = True
        os.write(self._wake_w, b"!")

    def _woken(self) -> None:
        os.read(self._wake_r, 4096)

    def drop_waiting(self, state: State, reason: str) -> None:
        """End what has not started yet with this state."""
        for waiting in self._waiting:
            self._done.append(StageResult(waiting.node.id, state, reason=reason))
            waiting.lock.release()
        self._waiting.clear()

    def _stop_all(self) -> None:
        self.drop_waiting("interrupted", "the run was interrupted")
        for action in self._running.values():
            if not action.stopping:
                self._stop(action, "interrupted")

    def _stop(self, action: Action, why: str) -> None:
        action.stopping = why
        action.kill_at_s = time.monotonic() + _GRACE_S
        action.signal(signal.SIGTERM)

    # Starting --------------------------------------------------------------------------------

    def add(
        self, node: StageNode, decision: Decision, upstream: Mapping[str, Outputs], *, forced: bool
    ) -> None:
        """Take a stage in; it starts as soon as its lock and its resources are free."""
        lock = self._store.lock(decision.key)
        self._waiting.append(_Waiting(node, decision, upstream, forced, lock))
        self._start_ready()

    def _start_ready(self) -> None:
        for waiting in list(self._waiting):
            if not self._fits(waiting.node):
                continue
            try:
                if waiting.lock.try_acquire():
                    self._waiting.remove(waiting)
                    self._start(waiting)
            except DeployRunnerError as error:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)
                waiting.lock.release()
                self._done.append(_failed(waiting.node, waiting.decision, error))

    def _fits(self, node: StageNode) -> bool:
        if not self._running:
            return True  # A stage that needs more than there is runs alone.
        used = [action.node.resources for action in self._running.values()]
        cpu = sum(r.cpu for r in used) + node.resources.cpu
        memory = sum(r.memory_bytes for r in used) + node.resources.memory_bytes
        return cpu <= self._cpu and (not self._memory or memory <= self._memory)

    def _start(self, waiting: _Waiting) -> None:
        """Begin an action whose lock is held, unless another run has done it since the decision was taken."""
        node, decision = waiting.node, waiting.decision
        if decision.state != "miss" or self._store.records.get(decision.key) is not None:
            decision = self._planner.decide(node, waiting.upstream)
        if decision.state == "hit" and not waiting.forced:
            waiting.lock.release()
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
        redactor = Redactor(secrets)
        log_path = self._run_folder / "logs" / f"{node.id}.log"
        action = Action(node, decision, folder, waiting.lock, log_path, redactor, time.monotonic())
        (folder / "work").mkdir(parents=True)
        self._emit(Event("stage-started", time.time(), node.id, text=reason))
        try:
            self._launch(action)
        except BaseException:
            action.close()
            self._trash.append(folder)
            raise

    def _launch(self, action: Action) -> None:
        cloud = self._cloud(action)
        asked = request(
            action, self._graph, self._store, self._planner.environment, self._environ, cloud,
            run=self._run_folder.name, require_sandbox=self._options.require_sandbox,
        )  # fmt: skip
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_end, True)
        try:
            self._server(heavy=bool(action.node.preload)).spawn(asked, write_end)
        except OSError as error:
            os.close(read_end)
            raise StageError("the fork server has ended", fix="run again") from error
        finally:
            os.close(write_end)
        action.pipe = read_end
        self._selector.register(read_end, selectors.EVENT_READ, lambda: self._read_log(action))
        if action.node.resources.timeout_s:
            action.deadline_s = time.monotonic() + action.node.resources.timeout_s
        self._running[action.folder.name] = action

    def _cloud(self, action: Action) -> Mapping[str, str]:
        """Return the environment of the network: the real one's, or local servers' of a dry run."""
        if not action.node.network:
            return {}
        if self._graph.live:
            return live_environment(self._environ)
        from ...local.servers import dry_run
        from ...registry import load_class

        node = action.node
        services = load_class(node.module, node.class_name, node.stage_dir).services
        stack = ExitStack()
        action.close = stack.close

        def log(line: str) -> None:
            self._log(action, line)

        return stack.enter_context(dry_run(action.folder / "servers", services=services, log=log))

    def _server(self, *, heavy: bool) -> ForkServer:
        if heavy not in self._servers:
            nodes = [n for n in self._nodes if bool(n.preload) == heavy]
            modules = dict.fromkeys(m for n in nodes for m in n.preload)
            modules |= dict.fromkeys(n.module for n in nodes if n.module.startswith(_BUILTIN))
            server = None if heavy else self._early
            server = server or ForkServer(threads=self._cpu)
            server.preload(list(modules), home=str(self._store.new_tmp()))
            self._servers[heavy] = server
            self._selector.register(server.channel, selectors.EVENT_READ, lambda: self._answered(heavy))
        return self._servers[heavy]

    # Watching --------------------------------------------------------------------------------

    def wait(self) -> list[StageResult]:
        """Wait until at least one stage has ended, and return the results."""
        while not self._done:
            if self.interrupted:
                self._stop_all()
            self._start_ready()
            if self._done:
                break
            self._tidy()
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._enforce_limits()
        done, self._done = self._done, []
        return done

    def _tidy(self) -> None:
        """Put records and remove folders: now, because the stages that waited have started.

        A lock is given back only when its record is there, so that no other run does the work again.
        """
        while self._unrecorded:
            lock, record = self._unrecorded.pop()
            try:
                if record is not None:
                    self._store.records.put(record)
            finally:
                lock.release(remove=True)
        while self._trash:
            remove_tree(self._trash.pop())

    def _timeout(self) -> float | None:
        now = time.monotonic()
        moments = [a.kill_at_s or a.deadline_s for a in self._running.values()]
        limits = [max(0.0, moment - now) for moment in moments if moment]
        if any(self._fits(w.node) for w in self._waiting):
            limits.append(_POLL_S)  # Another run holds the lock: flock(2) can't be selected on.
        return min(limits, default=None)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for action in self._running.values():
            if action.kill_at_s and now >= action.kill_at_s:
                action.signal(signal.SIGKILL)
                action.kill_at_s = now + _GRACE_S
            elif action.deadline_s and now >= action.deadline_s and not action.stopping:
                self._stop(action, f"timed out after {action.node.resources.timeout_s:g} s")

    def _answered(self, heavy: bool) -> None:
        try:
            answers = self._servers[heavy].answers()
        except (EOFError, OSError):
            self._server_died(heavy)
            return
        for answer in answers:
            action = self._running.get(answer.get("action", ""))
            if action is None:
                continue
            if answer["event"] == "started":
                action.pid = answer["pid"]
                if action.stopping:
                    action.signal(signal.SIGTERM)
            elif answer["event"] == "exited":
                action.confinement = Confinement.from_json(answer.get("confinement", NOT_STARTED))
                self._exited(action, answer["status"], answer.get("error", ""))

    def _server_died(self, heavy: bool) -> None:
        server = self._servers.pop(heavy)
        self._selector.unregister(server.channel)
        server.stop()
        for action in list(self._running.values()):
            if bool(action.node.preload) == heavy:
                action.signal(signal.SIGKILL)
                self._exited(action, 0, "the fork server was killed together with its workers")

    def _read_log(self, action: Action) -> bool:
        """Pass on what was printed; say whether there may be more."""
        if action.pipe < 0:
            return False  # It was closed by an event of the same round.
        try:
            data = os.read(action.pipe, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._close_pipe(action)
        for line in action.lines(data):
            self._log(action, line)
        return bool(data)

    def _log(self, action: Action, line: str) -> None:
        if line.startswith(PROGRESS):
            self._emit(progress_event(action.node.id, line))
            return
        action.log_path.parent.mkdir(parents=True, exist_ok=True)
        with action.log_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._emit(Event("stage-log", time.time(), action.node.id, line))

    def _close_pipe(self, action: Action) -> None:
        if action.pipe >= 0:
            self._selector.unregister(action.pipe)
            os.close(action.pipe)
            action.pipe = -1

    def _exited(self, action: Action, status: int, error: str) -> None:
        """Collect what a worker made; none of its processes lives any more."""
        seconds = time.monotonic() - action.started_s
        while self._read_log(action):
            pass
        if action.unfinished:
            for line in action.lines(b"\n"):
                self._log(action, line)
        self._close_pipe(action)
        action.close()
        del self._running[action.folder.name]
        result, record = finish(action, status, self._store, self._graph, seconds=seconds, spawn_error=error)
        self._unrecorded.append((action.lock, record))
        if result.evidence:
            place = self._run_folder / "refused" / action.node.id
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(result.evidence, place)
            result = result._replace(evidence=str(place))
        if self._options.keep_workdirs:
            kept = self._run_folder / "workdirs" / action.node.id
            kept.parent.mkdir(parents=True, exist_ok=True)
            action.work.rename(kept)
            result = result._replace(workdir=str(kept))
        self._trash.append(action.folder)
        self._done.append(result)

    def close(self) -> None:
        """Stop what still runs, the servers, and give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        try:
            self._tidy()
        finally:
            self._end()

    def _end(self) -> None:
        for action in self._running.values():
            action.signal(signal.SIGKILL)
            action.close()
            self._close_pipe(action)
            action.lock.release()
        for server in self._servers.values():
            server.stop(grace_s=_GRACE_S if self._running else 0)
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)


def _failed(node: StageNode, decision: Decision, error: DeployRunnerError) -> StageResult:
    return StageResult(node.id, "failed", decision.key, error=str(error), exit_code=error.exit_code)
