"""Instances of a matrix of which the same is to be said → one line for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

__all__ = ["fold"]

_MOST = 20


def fold(rows: Sequence[tuple[str, Hashable]]) -> list[tuple[str, int]]:
    """Return (label, index of the first row) of each line to be shown, in the order of the rows.

    A row is a stage's id and what is said of it. More than 20 instances of a stage of which the same is said
    are one line; None is never folded.

    >>> fold([("a", 1), ("b[1]", 1)] + [(f"c[{i}]", 1) for i in range(21)])
    [('a', 0), ('b[1]', 1), ('c[21 instances]', 2)]
    """
    keys = [(id_.partition("[")[0], said) for id_, said in rows]
    counts = Counter(key for key in keys if key[1] is not None)
    lines: list[tuple[str, int]] = []
    shown: set[Hashable] = set()
    for index, ((id_, _), key) in enumerate(zip(rows, keys, strict=True)):
        if "[" not in id_ or counts[key] <= _MOST:
            lines.append((id_, index))
        elif key not in shown:
            shown.add(key)
            lines.append((f"{key[0]}[{counts[key]} instances]", index))
    return lines
