"""What is told to whoever sent something that can't be read."""

from __future__ import annotations

__all__ = ["BadInput", "Malformed", "Unsupported"]


class BadInput(Exception):
    """What was sent can't be read: one sentence for whoever sent it; `too_large` where a limit is passed."""

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large

    @property
    def status(self) -> int:
        """Return the HTTP status that says it."""
        return 413 if self.too_large else 422


class Malformed(BadInput):
    """It isn't what its content type says."""

    @property
    def status(self) -> int:
        """Return the HTTP status that says it."""
        return 400


class Unsupported(BadInput):
    """Its content type isn't read."""

    @property
    def status(self) -> int:
        """Return the HTTP status that says it."""
        return 415
