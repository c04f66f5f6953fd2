"""Build a model of the zoo as its user's script does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy_runner.sdk import load_code

from .entries import Entry

__all__ = ["HAND", "built", "saved"]

HAND = Path(__file__).with_name("handwritten")


def saved(entry: Entry, folder: Path) -> nn.Module:
    """Return the model with random weights, having saved it: a checkpoint, or a folder of save_pretrained."""
    torch.manual_seed(0)
    if entry.folder:
        from tests.models import hub

        return _without_cache(hub.saved(entry.folder, folder / "folder"))
    module = _made(entry)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(
                    std=0.1
                )  # Training ends what begins as zeros; else nothing depends on the input.
    torch.save(module.state_dict(), folder / "model.pt")
    return module


def built(entry: Entry, folder: Path) -> nn.Module:
    """Return the model with the weights that were saved."""
    if entry.folder:
        import transformers

        hf: Any = transformers
        config = hf.AutoConfig.from_pretrained(folder / "folder")
        kind = getattr(hf, config.architectures[0])
        return _without_cache(kind.from_pretrained(folder / "folder").eval())
    module = _made(entry)
    module.load_state_dict(torch.load(folder / "model.pt"))
    return module


def _made(entry: Entry) -> nn.Module:
    code = entry.factory.partition(":")[0]
    files = {code: HAND / code} if code.endswith(".py") else {}
    module: nn.Module = load_code(entry.factory, files)(**entry.kwargs)
    return module.eval()


def _without_cache(model: Any) -> nn.Module:
    """Return a model that gives no state for the next token, as whoever exports it alone wants."""
    model.config.use_cache = False
    module: nn.Module = model
    return module
