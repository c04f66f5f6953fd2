"""Read the pages as GitHub does: an extension of Python-Markdown for the site.

The pages are written for GitHub first. Links to files outside `docs/` lead to the repository, a block of
`yaml-fragment` is coloured as YAML, a list needs no empty line before it, and what belongs to an item is
indented by two spaces.
"""

from __future__ import annotations

import re

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_FENCE = re.compile(r"^( *)(`{3,})(\w+)?(?:-[\w-]+)?(.*)$")
_OUTSIDE = re.compile(r"(\]\()(?:\.\./)+(?!\w+/?\.\.)([^)\s]*\))")
_ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ")


class _AsOnGitHub(Preprocessor):
    def __init__(self, md: Markdown, repository: str) -> None:
        super().__init__(md)
        self._repository = repository

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines as Python-Markdown reads them."""
        done: list[str] = []
        within = listed = parted = (
            False  # Within a block of code; within a list; after an empty line in an item.
        )
        shift = ""
        for line in lines:
            fence = _FENCE.match(line)
            if within and not fence:
                done.append(shift + line if line else line)
                continue
            item, blank = _ITEM.match(line), not (done and done[-1].strip())
            if item and not blank and (parted or not listed):
                done.append("")
            parted = not item and (parted or blank)
            listed = bool(item) or (listed and (not blank or line[:1] in ("", " ")))
            if fence and not within:
                shift = " " * (_deeper(line) if listed else 0)
            if fence:
                within = not within
                indent, marks, kind, rest = fence.groups()
                done.append(f"{shift}{indent}{marks}{kind or ''}{rest}")
                continue
            linked = _OUTSIDE.sub(rf"\g<1>{self._repository}\g<2>", line)
            done.append(" " * _deeper(line) + linked if listed else linked)
        return done


def _deeper(line: str) -> int:
    """Return how many spaces a line of a list lacks: GitHub has 2 or 3 for each level, Python-Markdown 4."""
    spaces = len(line) - len(line.lstrip(" "))
    return 4 * (spaces // 2) - spaces if spaces > 1 else 0


class _Extension(Extension):
    def __init__(self, **options: str) -> None:
        self.config = {"repository": ["", "where files outside docs/ are"]}
        super().__init__(**options)

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - the name is Python-Markdown's
        """Register what runs before all else."""
        md.preprocessors.register(_AsOnGitHub(md, self.getConfig("repository")), "as_on_github", 1000)


def makeExtension(**options: str) -> _Extension:  # noqa: N802 - the name is Python-Markdown's
    """Return the extension; Python-Markdown calls this."""
    return _Extension(**options)
