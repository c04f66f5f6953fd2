"""The weights inside a program: TorchScript (.jit) and torch.export (.pt2). Loading either runs code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import StageError, first_line

_NAMES = {"torchscript": "a TorchScript program", "pt2": "a torch.export program (.pt2)"}


def state_dict(path: Path, form: Literal["torchscript", "pt2"], *, trust: bool) -> dict[str, Any]:
    """Return a program's state_dict. Raises StageError without `trust`, before anything is loaded."""
    import torch

    if not trust:
        raise StageError(f"the file is {_NAMES[form]}, not a checkpoint: loading it runs code",
                         fix="use the training checkpoint that it was created from; or, if you trust it, set "
                         "`trust: true` on the stage to take its weights")  # fmt: skip
    try:
        if form == "torchscript":
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        return dict(torch.export.load(path).state_dict)
    except Exception as error:  # A damaged program takes torch anywhere.
        raise StageError(f"{_NAMES[form]} can't be loaded: {first_line(error)}",
                         fix="load it where it was made, and save its state_dict") from None  # fmt: skip
