"""Say in one line what an error of the user's code or file says, and where it is."""

from __future__ import annotations

import re

_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^/\s'\"]+/)+(?=[^/\s])")
"""The folders of an absolute path: a worker's are of no use to anybody."""


def user_line(error: BaseException) -> str:
    """Return ` at FILE:LINE` for the innermost line of the user's code, or nothing.

    User code is compiled under its path relative to the project; installed packages are not.
    """
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("/", "<"))]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its class; of paths the last part only."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return _FOLDERS.sub("", said)
