"""What a crew is: the workers of a run, on this machine or on many, behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...store.actions import ActionRecord
from ...types import Artifact, StageNode, StageResult
from .action import Action

__all__ = ["Audience", "Crew", "Ended", "stays_here"]


class Ended(NamedTuple):
    """An action that has ended: its result and, if it counts for later runs, its record.

    `lost` are inputs that were not available: the stages that build them have to run again.
    """

    action: Action
    result: StageResult
    record: ActionRecord | None = None
    lost: tuple[Artifact, ...] = ()


def stays_here(node: StageNode) -> bool:
    """Say whether a stage runs on the driver's machine in any crew: it needs the network or has secrets."""
    return bool(node.network or node.secrets or node.converges)


class Audience(Protocol):
    """Who is told what happens in a crew while it works."""

    def started(self, action: Action) -> None:
        """Take note that an action has started."""

    def log(self, action: Action, line: str) -> None:
        """Take note of a line that an action printed, or of its progress; it contains no secrets."""


class Crew(Protocol):
    """Runs actions. Everything but `wake` is called from one thread."""

    @property
    def busy(self) -> bool:
        """Say whether an action has been added that `wait` has not returned."""

    def prepare(self, node: StageNode) -> None:
        """Get ready for stages like this one. Raises UsageError if the crew can't be used at all."""

    def room(self, node: StageNode, beside: Sequence[StageNode] = ()) -> bool:
        """Say whether a stage may be added now, and these others too."""

    def add(self, action: Action) -> None:
        """Start an action, now or as soon as a machine is free. Raises DeployRunnerError if it can't be."""

    def wait(self, timeout_s: float | None) -> list[Ended]:
        """Return the actions that have ended; wait for one, until the time is over or for `wake`."""

    def stop(self, action: Action, why: str) -> None:
        """End an action's processes: it fails for this reason, or is interrupted if that is the reason."""

    def wake(self) -> None:
        """Have `wait` return. It may be called from a signal handler or from another thread."""

    def close(self) -> None:
        """End everything that still runs; nothing of it is left afterwards."""
