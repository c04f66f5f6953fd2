"""Read the pages as GitHub does: an extension of Python-Markdown for the site.

The pages are written for GitHub first. Links to files outside `docs/` lead to the repository, a block of
`yaml-fragment` is coloured as YAML, and a list needs no empty line before it.
"""

from __future__ import annotations

import re

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_FENCE = re.compile(r"^( *)(`{3,})(\w+)?(?:-[\w-]+)?(.*)$")
_OUTSIDE = re.compile(r"(\]\()(?:\.\./)+(?!\w+/?\.\.)([^)\s]*\))")
_ITEM = re.compile(r"^(?:[-*]|\d+\.) ")


class _AsOnGitHub(Preprocessor):
    def __init__(self, md: Markdown, repository: str) -> None:
        super().__init__(md)
        self._repository = repository

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines as Python-Markdown reads them."""
        done: list[str] = []
        within = False
        for line in lines:
            fence = _FENCE.match(line)
            if fence:
                within = not within
                indent, marks, kind, rest = fence.groups()
                done.append(f"{indent}{marks}{kind or ''}{rest}")
            elif within:
                done.append(line)
            else:
                if _ITEM.match(line) and done and done[-1].strip() and not _in_list(done):
                    done.append("")
                done.append(_OUTSIDE.sub(rf"\g<1>{self._repository}\g<2>", line))
        return done


def _in_list(lines: list[str]) -> bool:
    """Return whether the paragraph that the lines end with belongs to an item."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if _ITEM.match(line) or line.startswith(" "):
            return True
    return False


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
