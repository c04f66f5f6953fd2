"""What an axis of samples is called, where a model names its axes."""

from __future__ import annotations

import re

__all__ = ["names_samples"]

_BATCH = re.compile(r"(?i)(n|b|bs|bsz|.*batch.*|n_?samples|samples)")


def names_samples(label: str) -> bool:
    """Say whether an axis of this name is one of samples, for all that is known."""
    return _BATCH.fullmatch(label) is not None
