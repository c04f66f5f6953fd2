"""What runs have written, as text that a page can show: no control characters, numbers people can read."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["moment", "number", "visible"]

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
"""The sequences of a terminal: colours, places, titles."""
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {0x7F: 0x2421}
_UNSEEN = dict.fromkeys(
    (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C), 0xFFFD
)
"""What would turn the order of the text around it, and the controls of 8 bits."""
_MARKS = {**_CONTROLS, **_UNSEEN}


def visible(text: object) -> str:
    """Return a text with its control characters as signs; a carriage return begins a line."""
    plain = _ESCAPES.sub("", str(text).replace("\r\n", "\n").replace("\r", "\n"))
    return plain.translate(_MARKS).encode("utf-8", "replace").decode()


def number(value: Any) -> str:
    """Return a figure as it is shown."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return visible(value)


def moment(time: str) -> str:
    """Return a time of a record, `2026-11-30T22:41:07Z`, as people write it."""
    return visible(time.removesuffix("Z").replace("T", " ", 1)) + " UTC" if time else ""
