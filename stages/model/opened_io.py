"""Open the output of model.io in a stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy_runner.sdk import StageError, first_line

if TYPE_CHECKING:
    from ...server.raw import rawio

__all__ = ["open_io"]


def open_io(folder: Path) -> rawio.RawIo:
    """Open the output of model.io. Raises StageError."""
    from ...server.raw import rawio

    if not (folder / rawio.FILE).is_file():
        raise StageError("`io` is no output of model.io: it has no io.json")
    try:
        return rawio.RawIo(folder)
    except Exception as error:  # Its code is the user's.
        raise StageError(f"the io can't be opened: {type(error).__name__}: {first_line(error)}") from error
