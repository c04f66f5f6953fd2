"""A text → its pieces: plain text, and what stands in each `${{ … }}`.

There is one tokenizer for all that reads references. It looks at each character once: a quoted text may
contain `}}`, as in the expressions of GitHub Actions, and a `${{` inside a reference is an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["BadReference", "Reference", "pieces", "whole"]

_OPEN = "${{"
_NEXT = re.compile(r"\}\}|'|\$\{\{")


class Reference(NamedTuple):
    """What stands between `${{` and `}}`, without the blanks around it."""

    expression: str


class BadReference(ValueError):
    """A text contains a reference that doesn't end."""


def pieces(text: str) -> list[str | Reference]:
    """Return plain texts and references in their order; together they are the whole text.

    Raises BadReference for a `${{` that is not closed.

    >>> pieces("a ${{ vars.b }}}")
    ['a ', Reference(expression='vars.b'), '}']
    """
    found: list[str | Reference] = []
    at = 0
    while (start := text.find(_OPEN, at)) >= 0:
        if start > at:
            found.append(text[at:start])
        end = _end(text, start + len(_OPEN))
        found.append(Reference(text[start + len(_OPEN) : end].strip()))
        at = end + 2
    if at < len(text):
        found.append(text[at:])
    return found


def _end(text: str, at: int) -> int:
    """Return where the `}}` is that closes a reference."""
    while (found := _NEXT.search(text, at)) is not None:
        if found.group() == "}}":
            return found.start()
        if found.group() == _OPEN:
            raise BadReference("a '${{' is not closed by '}}' before the next one")
        quote = text.find("'", found.end())
        if quote < 0:
            raise BadReference("a quote (') inside '${{ … }}' is not closed")
        at = quote + 1
    raise BadReference("a '${{' is not closed by '}}'")


def whole(text: str) -> str | None:
    """Return the expression if a text is one reference and nothing else, blanks around it apart."""
    if not text.lstrip().startswith(_OPEN):
        return None
    try:
        match pieces(text.strip()):
            case [Reference(expression)]:
                return expression
    except BadReference:
        pass
    return None
