"""Write stages as YAML the way people do: short mappings on one line, hints as comments where they belong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["rendered"]

_WIDTH = 110
_BARE = re.compile(r"[A-Za-z_./][\w./-]*(:[A-Za-z_][\w.]*)?")
_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))


def rendered(stages: Mapping[str, Mapping[str, Any]], hints: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Yield the lines of the stages, indented by two; `hints` are comments by stage and section."""
    for number, (name, stage) in enumerate(stages.items()):
        if number:
            yield ""
        yield f"  {name}:"
        for section, value in stage.items():
            hint = hints.get((name, section))
            line = f"    {section}: {_inline(value)}"
            if not isinstance(value, Mapping) or (hint is None and len(line) <= _WIDTH):
                yield line if isinstance(value, (Mapping, list)) else f"    {section}: {_alone(value)}"
                continue
            yield f"    {section}:"
            yield from (f"      {key}: {_alone(inner)}" for key, inner in value.items())
            if hint is not None:
                yield f"      # {hint}"


def _alone(value: Any) -> str:
    """Return a value that stands alone on its line: references need no quotes there."""
    return value if isinstance(value, str) and value.startswith("${{") else _inline(value)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inline(str(key))}: {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
