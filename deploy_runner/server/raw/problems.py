"""What is told to whoever sent something that can't be read."""

from __future__ import annotations

__all__ = ["BadInput"]


class BadInput(Exception):
    """What was sent can't be read: one sentence for whoever sent it; `too_large` where a limit is passed."""

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large
