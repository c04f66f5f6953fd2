"""All models of the zoo."""

from __future__ import annotations

from . import of_hand, of_timm, of_torchvision, of_transformers

__all__ = ["ENTRIES"]

ENTRIES = [*of_timm.ENTRIES, *of_torchvision.ENTRIES, *of_transformers.ENTRIES, *of_hand.ENTRIES]
