"""Which file goes where in a repository, and which input it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Placed", "makers"]

_UNMADE = "the project"


class Placed(NamedTuple):
    """A file, and the input that it comes from by its flat name; "" for what the push writes."""

    path: Path
    given: str = ""


def makers(
    files: Mapping[str, Placed], lineage: Mapping[str, Any], digests: Mapping[str, str], own: str
) -> dict[str, str]:
    """Return path → the stage that made the file, with its type; `own` is the push itself.

    `digests` are those of the inputs by flat name. What stages hand on unchanged is its first maker's.
    """
    made = _made(lineage)
    return {
        path: made.get(digests.get(file.given, ""), _UNMADE) if file.given else own
        for path, file in files.items()
    }


def _made(lineage: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each output → the stage that made it and didn't take it as an input."""
    found: dict[str, str] = {}
    for id_, stage in lineage.items():
        taken = {given[0] for given in stage["inputs"].values()}
        for digest, *_ in stage["made"].values():
            if digest not in taken:
                found.setdefault(digest, f"{id_} (`{stage['uses']}`)")
    return found
