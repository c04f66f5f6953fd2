"""Build a model of the zoo as its user's script does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy_runner.sdk import load_code

from .entries import Entry, made

__all__ = ["HAND", "built", "saved"]

HAND = Path(__file__).with_name("handwritten")


def saved(entry: Entry, folder: Path) -> nn.Module:
    """Return the model with random weights, having saved it: a checkpoint, or a folder of save_pretrained."""
    torch.manual_seed(0)
    if entry.folder:
        from tests.models import hub

        return _without_cache(hub.saved(entry.folder, folder / "folder"))
    module = _made(entry)
    _as_trained(module, entry)
    torch.save(module.state_dict(), folder / "model.pt")
    return module


def _as_trained(module: nn.Module, entry: Entry) -> None:
    """Change what would make a fresh model ignore its inputs: weights of zeros, statistics of nothing."""
    batches = any("batch" in given.shape for given in entry.inputs.values())
    norms = [
        part for part in module.modules() if batches and isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.1)
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        if norms:
            module(**{name: torch.from_numpy(array) for name, array in made(entry, "third sizes").items()})
    module.eval()


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
