"""The weights inside a program: TorchScript (.jit) and torch.export (.pt2). Loading either runs code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..model import programs


def state_dict(path: Path, form: Literal["torchscript", "pt2"], *, trust: bool) -> dict[str, Any]:
    """Return a program's state_dict. Raises StageError without `trust`, before anything is loaded."""
    instead = "use the training checkpoint that it was created from"
    programs.refuse_without_trust(form, trust=trust, instead=instead, but=", not a checkpoint")
    if form == "torchscript":
        return dict(programs.script(path).state_dict())
    return dict(programs.exported(path).state_dict)
