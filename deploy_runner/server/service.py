"""The model that is served now, its replacement without a failed request, and inference through it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

from .answered import Readers
from .artifact import fingerprint
from .batching import Batcher, Entry, Limits, Tell
from .board import Board
from .log import Log
from .metrics import Metrics
from .model import Model, describe, load
from .options import Settings
from .placement import Placement
from .ports import Arrays, alike, check
from .problems import UnfitArtifact

__all__ = ["Live", "Service", "cores", "settle"]

_WATCH_S = 0.5
_SHOW_S = 0.1
_FORCED = 130


class Live:
    """A model with the batcher that its requests go through."""

    __slots__ = ("batcher", "inputs", "io", "joins", "model", "outputs", "version")

    def __init__(self, model: Model, limits: Limits, metrics: Metrics, placement: Placement) -> None:
        self.model = model
        self.inputs, self.outputs = model.inputs, model.outputs
        self.version = model.artifact.version
        self.joins = model.joins
        self.io = model.io
        self.batcher = Batcher(model.program, limits, metrics, placement)


class Service:
    """Serves one artifact. `start` first, in the event loop that it then lives in."""

    def __init__(self, settings: Settings, log: Log, board: Board | None = None, worker: int = 0) -> None:
        self.settings, self.log = settings, log
        self._board, self._worker = board, worker
        workers = board.workers if board else 1
        self._workers = workers
        self.name = settings.name or "model"
        self.metrics = Metrics(lambda: self.live.batcher.waiting, lambda: self.live.batcher.running)
        if board is not None:
            if (state := board.read(worker)) is not None:
                self.metrics.resume(state)
            rest = [other for other in range(workers) if other != worker]
            self.metrics.others = lambda: [shown for other in rest if (shown := board.read(other))]
        self.draining = False
        """A signal has come: the server isn't ready any more."""
        self.lame = False
        """It still takes requests, for `lame_duck_s`."""
        self.live: Live
        self._limits = Limits(
            max_batch=settings.max_batch, max_delay_s=settings.max_delay_us / 1e6,
            max_queue=max(settings.max_queue // workers, settings.max_samples), timeout_s=settings.timeout_s,
        )  # fmt: skip
        self.readers = Readers(max(1, cores() // workers), settings.max_queue)
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, model: Model) -> None:
        """Serve a loaded model, and watch for others if asked to."""
        self._serve(model)
        if self._board is not None:
            self._spawn(self._show(self._board))
        if self.settings.watch:
            self._spawn(self._watch(model.fingerprint))

    def _serve(self, model: Model) -> None:
        placement = Placement(self.settings.run_in, model.cpu_s, self.log)
        self.live = Live(model, self._limits.of(model.max_batch), self.metrics, placement)
        self.metrics.model(self.name, model.artifact.digest, model.artifact.format)
        in_loop = placement.most_samples(min(model.cpu_s), model.max_batch if model.joins else 1)
        self.log("model", name=self.name, **describe(model), in_loop=in_loop)

    async def _show(self, board: Board) -> None:
        """Show the other workers this one's figures."""
        try:
            while True:
                board.write(self._worker, self.metrics.state())
                await asyncio.sleep(_SHOW_S)
        finally:
            board.write(self._worker, self.metrics.state())

    def submit(self, live: Live, arrays: Arrays, tell: Tell) -> Entry:
        """Check the inputs and queue them, for the answer to be told. Raises Refused."""
        rows = check(arrays, live.inputs, self.settings.max_samples)
        key = None
        if rows and live.joins:
            key = alike(arrays, live.inputs)
        return live.batcher.submit(arrays, rows, key, tell)

    def reload_soon(self) -> None:
        """Start to load what is at the artifact's path now: what SIGHUP does."""
        self._spawn(self.reload())

    async def reload(self) -> None:
        """Load and try what is at the path beside the old model, then swap; a bad one is refused."""
        async with self._reloading:
            await self._reload()
        settle()

    async def _reload(self) -> None:
        try:
            model = await asyncio.to_thread(load, self.settings, cores(), self._workers)
        except UnfitArtifact as error:
            self.metrics.reload("refused")
            self.log("reload rejected", error=str(error), kept=self.live.version)
            return
        old = self.live
        if model.artifact.digest == old.model.artifact.digest:
            self.metrics.reload("unchanged")
            self.log("reload", unchanged=old.version)
            model.scratch.close()
            return
        self._serve(model)
        self.metrics.reload("swapped")
        self.log("reload", old=old.version, new=self.live.version)
        await old.batcher.drained()
        old.model.scratch.close()

    async def _watch(self, served: tuple[object, ...]) -> None:
        """Reload when the artifact has changed, and has stayed as it is for one more look."""
        path, last = Path(self.settings.artifact), served
        while True:
            await asyncio.sleep(_WATCH_S)
            now = await asyncio.to_thread(fingerprint, path)
            if now == last and now != served:
                served = now
                await self.reload()
            last = now

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def drain(self, number: int, then: Callable[[], None]) -> None:
        """Say from now on that the server isn't ready, and call `then` when requests end to be taken.

        The second signal ends the process at once. A worker is ended by the first process: what is sent to
        all processes of a service or a terminal comes to a worker twice, with what that passes on.
        """
        if self.draining:
            if self._board is None:
                os._exit(_FORCED)
            return
        self.draining = self.lame = True
        self.log("draining", signal=signal.Signals(number).name)

        def end() -> None:
            self.lame = False
            then()

        asyncio.get_running_loop().call_later(self.settings.lame_duck_s, end)

    async def stop(self) -> None:
        """End the watching, let what runs finish, and remove what was unpacked."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.live.batcher.drained()
        self.live.model.scratch.close()
        self.readers.close()


def settle(*, forked: bool = False) -> None:
    """Free what is left of a model that was loaded, and keep what stays out of all collections to come.

    A collection looks at all that isn't frozen, and requests wait meanwhile. What was frozen before a
    process was `forked` is not looked at: that would make copies of it.
    """
    if not forked:
        gc.unfreeze()
    gc.collect()
    gc.freeze()


def cores() -> int:
    """Return the cores that this process may use: its affinity, and its cgroup's quota."""
    available = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        if quota != "max":
            available = min(available, max(1, int(quota) // int(period)))
    return available
