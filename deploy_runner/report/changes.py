"""Two runs of a pipeline → the figures that differ."""

from __future__ import annotations

from typing import NamedTuple

from .candidates import number
from .lines import Entries

__all__ = ["Change", "changes"]


class Change(NamedTuple):
    """A figure of a stage in the earlier run and in this one; None where a run doesn't have it."""

    stage: str
    figure: str
    before: float | str | None
    now: float | str | None


def changes(before: Entries, now: Entries) -> list[Change]:
    """Return the single values among the figures that differ, of stages that both runs have."""
    return [
        Change(id_, name, old.get(name), new.get(name))
        for id_, entry in now.items()
        if id_ in before
        for old, new in [(_single(before[id_].get("figures")), _single(entry.get("figures")))]
        for name in {**new, **old}
        if old.get(name) != new.get(name)
    ]


def _single(figures: object) -> dict[str, float | str]:
    if not isinstance(figures, dict):
        return {}
    found = {name: value if isinstance(value, str) else number(value) for name, value in figures.items()}
    return {name: value for name, value in found.items() if value is not None}
