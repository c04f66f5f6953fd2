"""One line of `doctor`: what was looked at, what is wrong with it, which stages need it, how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..types import Json, StageNode

__all__ = ["Check"]

_MOST_STAGES = 3


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    `fix` is what to do, and `stages` are those that can't run, if `ok` is False; `note` marks advice.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    note: bool = False
    stages: tuple[StageNode, ...] = ()

    def __str__(self) -> str:
        state = "note" if self.note else "ok  " if self.ok else "FAIL"
        needed = f", needed by {_listed(self.stages)}" if self.stages and not self.ok else ""
        fix = f" ({self.fix})" if self.fix and not self.ok else ""
        return f"{state} {self.name}: {self.detail}{needed}{fix}"

    def as_dict(self) -> dict[str, Json]:
        """Return the check as JSON."""
        stages: list[Json] = [
            {"stage": node.id, "file": node.mark.file, "line": node.mark.line, "column": node.mark.column}
            for node in self.stages
        ]
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "fix": self.fix, "note": self.note,
                "stages": stages}  # fmt: skip


def _listed(stages: Iterable[StageNode]) -> str:
    named = [f"{node.id} at {node.mark}" for node in stages]
    more = len(named) - _MOST_STAGES
    return ", ".join(named[:_MOST_STAGES]) + (f" and {more} more" if more > 0 else "")
