"""Bring the inputs that an action needs and that a shared cache has, while other actions run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ...errors import DeployRunnerError
from ...store.cas import Store
from ...types import Artifact, PathSource
from .action import Action
from .aside import Aside
from .worker import PROGRESS

__all__ = ["Arrivals", "Arrived"]

_SAID_EVERY_S = 0.5


class Arrived(NamedTuple):
    """An action whose inputs are here, but for those that are `lost`, or for an `error` of the store."""

    action: Action
    lost: tuple[Artifact, ...] = ()
    error: str = ""


class _Stopped(Exception):
    pass


class Arrivals:
    """What is on its way to a crew: of so many actions at once, `wake` when that of one has ended."""

    def __init__(
        self, store: Store, log: Callable[[Action, str], None], wake: Callable[[], None], *, at_once: int
    ) -> None:
        self._store = store
        self._log = log
        self._aside: Aside[Arrived] = Aside(wake, threads=at_once)

    def await_inputs(self, action: Action) -> bool:
        """Say whether an action has to wait; `take` returns it when it need not any more."""
        sources = action.node.inputs
        inputs = (
            a for name, a in action.decision.inputs.items() if not isinstance(sources[name], PathSource)
        )
        away = [artifact for artifact in dict.fromkeys(inputs) if self._store.state(artifact) != "present"]
        if away:
            self._aside.do(partial(self._bring, action, away))
        return bool(away)

    def take(self) -> list[Arrived]:
        """Return what has ended since."""
        return self._aside.take()

    def close(self) -> None:
        """Wait for what is under way; for an action that is `stopping` it ends with the next bytes."""
        self._aside.close()

    def _bring(self, action: Action, away: list[Artifact]) -> Arrived:
        report = self._reporter(action, sum(artifact.size for artifact in away))
        try:
            return Arrived(action, tuple(a for a in away if not self._store.fetch(a, report)))
        except _Stopped:
            return Arrived(action)
        except (DeployRunnerError, OSError) as error:
            return Arrived(action, error=str(error))
        except Exception:  # Whatever happens here fails this action alone.
            return Arrived(action, error="its inputs can't be downloaded")

    def _reporter(self, action: Action, total: int) -> Callable[[int], None]:
        lock = threading.Lock()
        said_s, come = time.monotonic(), 0

        def report(count: int) -> None:
            nonlocal said_s, come
            if action.stopping:
                raise _Stopped
            with lock:
                come += count
                if time.monotonic() - said_s < _SAID_EVERY_S:
                    return
                said_s = time.monotonic()
            text = f"inputs: {come >> 20} of {total >> 20} MiB from the shared cache"
            self._log(action, f"{PROGRESS}{come / max(1, total)}\x1f{text}")

        return report
