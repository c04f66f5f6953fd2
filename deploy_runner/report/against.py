"""The headlines of two runs → each figure beside its earlier value, and by how much it changed."""

from __future__ import annotations

from typing import NamedTuple

from .headline import Figure, Headline, microseconds
from .lines import size

__all__ = ["Against", "against"]


class Against(NamedTuple):
    """A figure now and then. `change` is empty where it is the same, or has no earlier value."""

    figure: Figure
    then: Figure | None
    change: str


def against(now: Headline, then: Headline) -> list[Against]:
    """Return the figures of `now`, each beside the one of its name in `then`."""
    earlier = {figure.name: figure for figure in then.figures}
    return [Against(f, earlier.get(f.name), _change(f, earlier.get(f.name))) for f in now.figures]


def _change(now: Figure, then: Figure | None) -> str:
    if then is None or now.amount == then.amount:
        return ""
    by = now.amount - then.amount
    share = f" ({by / then.amount:+.1%})".replace("%", " %") if then.amount else ""
    return f"{'+' if by > 0 else '-'}{_shown(now.name, abs(by))}{share}".replace("-", "\N{MINUS SIGN}")


def _shown(name: str, by: float) -> str:
    if name == "accuracy":
        return f"{by:.2f} points"
    if name == "latency":
        return microseconds(by)
    return size(round(by)) if name == "size" else f"{by:.3g}"
