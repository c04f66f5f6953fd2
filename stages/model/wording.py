"""Say where in the user's code an error is."""

from __future__ import annotations


def user_line(error: BaseException) -> str:
    """Return ` at FILE:LINE` for the innermost line of the user's code, or nothing.

    User code is compiled under its path relative to the project; installed packages are not.
    """
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("/", "<"))]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
