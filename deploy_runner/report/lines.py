"""The entries of finished stages, and the words and marks for them, shared by every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import counted
from ..types import Json, StageResult, State

__all__ = [
    "MARKS",
    "Entries",
    "counts_line",
    "duration",
    "figures_line",
    "finished_line",
    "fitted",
    "listed",
    "size",
]

Entries = Mapping[str, Mapping[str, Json]]
"""The entries of the stages by id, as the record of a run has them: `state`, `uses`, `after`, `figures`…"""

_WIDTH = 80

MARKS: Mapping[State, tuple[str, str]] = {
    "ran": ("✓", "32"),
    "hit": ("=", "2"),
    "healed": ("+", "33"),
    "converged": ("=", "32"),
    "failed": ("✗", "31"),
    "skipped": ("-", "33"),
    "interrupted": ("!", "33"),
}
"""Per state: a mark, and its ANSI colour."""

_SHOWN_FIGURES = 4


def listed(value: Json) -> list[Json]:
    """Return a member of an entry that is a list, and an empty one where it has another shape."""
    return value if isinstance(value, list) else []


def duration(seconds: float) -> str:
    """Return a length of time as people say it: `85 ms`, `2.3 s`, `4 min 10 s`."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def size(bytes_: int) -> str:
    """Return a size in binary units: `615.9 KiB`."""
    value = float(bytes_)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def figures_line(figures: Mapping[str, Json], limit: int = _SHOWN_FIGURES) -> str:
    """Return the first scalar figures as `name value`, the rest is in the record."""
    shown = [f"{k} {_figure(v)}" for k, v in figures.items() if isinstance(v, (int, float, str))]
    return ", ".join(shown[:limit])


def _figure(value: int | float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finished_line(result: StageResult, width: int, *, color: bool) -> str:
    """Return the one line that says how a stage ended."""
    mark, code = MARKS[result.state]
    text = f"{mark} {result.id:<{width}}  {result.state:<9}"
    if result.state in ("ran", "healed", "converged"):
        text += f" {duration(result.seconds):>8}  {figures_line(result.figures)}"
    elif result.error or (result.state != "hit" and result.reason):
        text += f" {result.error or result.reason}"
    text = text.rstrip()
    return f"\033[{code}m{text}\033[0m" if color else text


def counts_line(results: Mapping[str, StageResult], seconds: float) -> str:
    """Return the last line of a run: how many stages ended how."""
    counts: dict[str, int] = {}
    for result in results.values():
        counts[result.state] = counts.get(result.state, 0) + 1
    parts = ", ".join(f"{counts[state]} {state}" for state in MARKS if state in counts)
    return f"{counted(len(results), 'stage')}: {parts or 'nothing to do'} in {duration(seconds)}"


def fitted(paragraphs: Sequence[str], most: int) -> list[str]:
    """Return the paragraphs as lines of 80 columns, at most so many together.

    The longest are shortened, of equally long ones the last.
    """
    wrapped = [_wrapped(text) for text in paragraphs]
    while sum(map(len, wrapped)) > max(most, len(wrapped)):
        longest = max(reversed(wrapped), key=len)
        longest.pop()
        longest[-1] = longest[-1][: _WIDTH - 4].rstrip() + " ..."
    return [line for lines in wrapped for line in lines]


def _wrapped(text: str) -> list[str]:
    """Return a text as lines that end between words; only a longer word than a line is cut."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
        while len(lines[-1]) > _WIDTH:
            lines[-1:] = [lines[-1][:_WIDTH], lines[-1][_WIDTH:]]
    return lines
