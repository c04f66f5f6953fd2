"""The crew of this machine: resources, workers from fork servers, their output, limits and ends.

It knows nothing of the plan: on a node of a cluster the same crew runs the actions that arrive there.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ...errors import DeployRunnerError, StageError
from ...store.cas import Store
from ...store.files import writing
from ...types import RunOptions, StageNode
from ..keys import KeyEnvironment
from . import gpus
from .action import Action, Project, finish, request
from .arrivals import Arrivals, Arrived
from .aside import Aside
from .crews import Audience, Ended
from .fork import ForkServer, ForkServers
from .images import images_of
from .live import live_environment
from .sandbox import NOT_STARTED, Confinement
from .supervisor import probe

__all__ = ["LocalCrew"]

_GRACE_S = 5.0
_FINISHERS = 4
"""At once: they hash, and wait for the disk."""


class LocalCrew:
    """Runs actions in workers of this machine, forked by `servers`, which end with the crew.

    `project` is that of the actions which are added next.
    """

    def __init__(
        self,
        project: Project,
        store: Store,
        keys: KeyEnvironment,
        options: RunOptions,
        environ: Mapping[str, str],
        audience: Audience,
        servers: ForkServers,
    ) -> None:
        if options.require_sandbox:
            probe().require()
        self.project = project
        self._store = store
        self._keys = keys
        self._options = options
        self._environ = environ
        self._audience = audience
        self._servers = servers
        self._cpu = options.cpu or len(os.sched_getaffinity(0))
        self._memory = options.memory_bytes or 0
        self._running: dict[str, Action] = {}
        self._finishing = 0
        self._aside: Aside[Ended] = Aside(self.wake, threads=_FINISHERS)
        self._ended: list[Ended] = []
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._woken)
        self._arrivals = Arrivals(store, audience.log, self.wake, at_once=self._cpu)

    @property
    def busy(self) -> bool:
        """Say whether an action has been added that `wait` has not returned."""
        return bool(self._running or self._finishing or self._ended)

    # Starting --------------------------------------------------------------------------------

    def prepare(self, node: StageNode) -> None:
        """Do nothing: a local crew is always ready."""

    def room(self, node: StageNode, beside: Sequence[StageNode] = ()) -> bool:
        """Say whether a stage's resources are free, with these others too."""
        if self._finishing and self._options.fail_fast:
            return False  # Nothing is started after a failure: whether it is one is not known yet.
        used = [*(action.node.resources for action in self._running.values()), *(n.resources for n in beside)]
        if not used:
            return True  # A stage that needs more than there is runs alone.
        cpu = sum(r.cpu for r in used) + node.resources.cpu
        memory = sum(r.memory_bytes for r in used) + node.resources.memory_bytes
        gpu = sum(n.resources.gpu for n in beside) + node.resources.gpu
        if node.resources.gpu and gpu > len(self._free_gpus()):
            return node.resources.gpu > len(gpus.usable(self._environ))  # `add` says that it can't run.
        return cpu <= self._cpu and (not self._memory or memory <= self._memory)

    def _free_gpus(self) -> tuple[str, ...]:
        used = {name for action in self._running.values() for name in action.gpus}
        return tuple(name for name in gpus.usable(self._environ) if name not in used)

    def add(self, action: Action) -> None:
        """Start an action once its inputs are here. Raises DeployRunnerError if it can't be started."""
        action.gpus = self._gpus_for(action.node)
        with writing(action.work):
            action.work.mkdir(parents=True)
        self._audience.started(action)
        if self._arrivals.await_inputs(action):
            self._running[action.name] = action
        else:
            self._begin(action)

    def _begin(self, action: Action) -> None:
        try:
            self._launch(action)
        except BaseException:
            action.close()
            raise

    def _gpus_for(self, node: StageNode) -> tuple[str, ...]:
        """Return the GPUs that a stage gets. Raises StageError for what this machine doesn't have."""
        gpus.require(node.resources, self._environ)
        return self._free_gpus()[: node.resources.gpu] if node.resources.gpu else ()

    def _launch(self, action: Action) -> None:
        asked = request(
            action, self.project, self._store, self._keys, self._environ, self._cloud(action),
            require_sandbox=self._options.require_sandbox,
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
        self._running[action.name] = action

    def _server(self, *, heavy: bool) -> ForkServer:
        server = self._servers.get(heavy=heavy)
        if server.channel not in self._selector.get_map():
            self._selector.register(server.channel, selectors.EVENT_READ, lambda: self._answered(heavy))
        return server

    def _cloud(self, action: Action) -> Mapping[str, str]:
        """Return the environment of the network: the real one's, or local servers' of a dry run."""
        if not action.node.network:
            return {}
        if self.project.live:
            return live_environment(self._environ)
        from ...local.servers import dry_run
        from ...registry import load_class

        node = action.node
        services = load_class(node.module, node.class_name, node.stage_dir).services

        def log(line: str) -> None:
            self._audience.log(action, line)

        return action.stack.enter_context(
            dry_run(
                action.folder / "servers", services=services, log=log,
                images=images_of(action, self.project, self._store) if "aws" in services else {},
            )
        )  # fmt: skip

    # Watching --------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None) -> list[Ended]:
        """Return the actions that have ended; wait for one, until the time is over or for `wake`."""
        if not self._ended:
            for key, _ in self._selector.select(self._timeout(timeout_s)):
                key.data()
            for arrived in self._arrivals.take():
                self._go_on(arrived)
            self._enforce_limits()
            finished = self._aside.take()
            self._finishing -= len(finished)
            self._ended += finished
        ended, self._ended = self._ended, []
        return ended

    def _go_on(self, arrived: Arrived) -> None:
        """Start an action whose inputs have been brought, or end it."""
        action = arrived.action
        del self._running[action.name]
        error = arrived.error
        if not (action.stopping or error or arrived.lost):
            try:
                self._begin(action)
            except DeployRunnerError as refused:
                error = str(refused)
            else:
                return
        seconds = time.monotonic() - action.started_s
        ended = finish(action, 0, self._store, self.project, seconds=seconds, spawn_error=error)
        self._ended.append(Ended(action, *ended, lost=() if action.stopping else arrived.lost))

    def wake(self) -> None:
        """Have `wait` return. It may be called from a signal handler or from another thread."""
        with suppress(BlockingIOError):  # It is full: `wait` returns as it is.
            os.write(self._wake_w, b"!")

    def _woken(self) -> None:
        os.read(self._wake_r, 4096)

    def _timeout(self, timeout_s: float | None) -> float | None:
        now = time.monotonic()
        moments = [a.kill_at_s or a.deadline_s for a in self._running.values()]
        limits = [max(0.0, moment - now) for moment in moments if moment]
        return min(limits if timeout_s is None else [*limits, timeout_s], default=None)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for action in self._running.values():
            if action.kill_at_s and now >= action.kill_at_s:
                action.signal(signal.SIGKILL)
                action.kill_at_s = now + _GRACE_S
            elif action.deadline_s and now >= action.deadline_s:
                self.stop(action, f"timed out after {action.node.resources.timeout_s:g} s")

    def stop(self, action: Action, why: str) -> None:
        """End an action's processes: by SIGTERM, and after some seconds by SIGKILL."""
        if not action.stopping and action.name in self._running:  # It may just be finished.
            action.stopping = why
            action.kill_at_s = time.monotonic() + _GRACE_S
            action.signal(signal.SIGTERM)

    def _answered(self, heavy: bool) -> None:
        try:
            answers = self._servers.get(heavy=heavy).answers()
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
        self._selector.unregister(self._servers.get(heavy=heavy).channel)
        self._servers.forget(heavy=heavy)
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
            self._audience.log(action, line)
        return bool(data)

    def _close_pipe(self, action: Action) -> None:
        if action.pipe >= 0:
            self._selector.unregister(action.pipe)
            os.close(action.pipe)
            action.pipe = -1

    def _exited(self, action: Action, status: int, error: str) -> None:
        """Have what a worker made collected; none of its processes lives any more."""
        seconds = time.monotonic() - action.started_s
        while self._read_log(action):
            pass
        if action.unfinished:
            for line in action.lines(b"\n"):
                self._audience.log(action, line)
        self._close_pipe(action)
        del self._running[action.name]
        project = self.project

        def end() -> Ended:
            try:
                return Ended(
                    action,
                    *finish(action, status, self._store, project, seconds=seconds, spawn_error=error),
                )
            finally:
                action.close()

        self._finishing += 1
        self._aside.do(end)

    def close(self) -> None:
        """End everything that still runs."""
        for action in self._running.values():
            action.signal(signal.SIGKILL)
            action.stopping = action.stopping or "interrupted"
            action.close()
            self._close_pipe(action)
        self._arrivals.close()
        self._aside.close()
        self._servers.stop(grace_s=_GRACE_S if self._running else 0)
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)
