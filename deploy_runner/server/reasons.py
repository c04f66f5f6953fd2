"""Return in one line why something failed: the first line of a message, or the one it introduces."""

from __future__ import annotations

import re

__all__ = ["first_line", "reason"]

_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^/\s'\"]+/)+(?=[^/\s])")
"""The folders of an absolute path: a worker's mean nothing to the user."""
_LAST = "The following operation failed in the TorchScript interpreter"
_LATER = {
    "Tracer cannot infer type of": ":",
    "Arguments for call are not valid": "Expected a value of type",
}
"""How torch's messages begin that print tensors or signatures first → how the line with the reason begins."""


def reason(error: BaseException | str) -> str:
    """Return the line of an error's text that says why; "" if there is no text.

    A line that ends in a colon introduces the next one, unless that is a place in a file.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return ""
    said = lines[0]
    if said.startswith(_LAST):
        return lines[-1]
    for start, begins in _LATER.items():
        if said.startswith(start):
            return next((line.removeprefix(":") for line in lines if line.startswith(begins)), said)
    if said.endswith(":") and lines[1:] and not lines[1].startswith('File "'):
        return f"{said} {lines[1]}"
    return said.removesuffix(":")


def first_line(error: BaseException | str) -> str:
    """Return why an error was raised, or its class; paths are shortened to their last part."""
    said = reason(error) or ("" if isinstance(error, str) else type(error).__name__)
    return _FOLDERS.sub("", said)
