"""The examples of the stage types, as docs/stages.md shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.conftest import ROOT

__all__ = ["files_of", "names", "section", "shared"]

_PAGE = ROOT / "docs/stages.md"
_FILE = re.compile(r"^```\w+\n(# (\S+\.\w+)\n.*?)^```", re.MULTILINE | re.DOTALL)


def names() -> list[str]:
    """Return the stage types that have a section."""
    return [
        name for name in re.findall(r"^## (.+)$", _PAGE.read_text(), re.MULTILINE) if name != "The examples"
    ]


def files_of(uses: str) -> Mapping[str, str]:
    """Return the files that the page shows for a stage type: name → text."""
    return _files(section(uses))


def shared() -> Mapping[str, str]:
    """Return the files that the page shows before all stage types."""
    return _files(section("The examples"))


def section(heading: str) -> str:
    """Return what the page says of a stage type."""
    return _PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def _files(text: str) -> Mapping[str, str]:
    return {name: content for content, name in _FILE.findall(text)}
