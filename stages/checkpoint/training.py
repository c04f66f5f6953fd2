"""What a checkpoint says of its training: who wrote it, how far it was, how the model was built."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import folders
from .sources import config

_ARGUMENTS = ("hyper_parameters", "model_args", "model_config", "model_kwargs", "hparams", "config", "args")
_ARCHITECTURE = ("arch", "architecture", "model_name", "model")
_MOST = 200


def arguments(content: Any) -> dict[str, Any]:
    """Return the plain values with which the model may have been built, by name."""
    found: dict[str, Any] = {}
    for name in reversed(_ARGUMENTS):
        value = content.get(name) if isinstance(content, Mapping) else None
        value = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(value, Mapping):
            found |= {k: v for k, v in value.items() if isinstance(k, str) and _is_plain(v)}
    return dict(list(found.items())[:_MOST])


def architecture(content: Any, path: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the architecture that was trained, or nothing, and what is said beside it."""
    said = config(path if path.is_dir() else path.parent)
    if isinstance(said.get("architecture"), str):
        return said["architecture"], said
    near = arguments(content)
    top = content if isinstance(content, Mapping) else {}
    for values in (top, near):
        for name in _ARCHITECTURE:
            if isinstance(values.get(name), str):
                return values[name], near
    return "", near


def trainer(content: Any, path: Path) -> str:
    """Return who wrote the checkpoint, or nothing."""
    if isinstance(content, Mapping) and isinstance(content.get("pytorch-lightning_version"), str):
        return f"Lightning {content['pytorch-lightning_version']}"
    if path.is_dir():
        if (path / folders.METADATA).is_file():
            return "torch.distributed.checkpoint"
        if (path / "trainer_state.json").is_file():
            return "the Trainer of transformers"
        if any(path.glob("mp_rank_*")) or any(path.glob("*/mp_rank_*")):
            return "DeepSpeed"
    return ""


def epoch(content: Any) -> int | None:
    """Return the epoch, where the checkpoint has it as a number."""
    found = content.get("epoch") if isinstance(content, Mapping) else None
    return found if type(found) is int else None


def module_class(content: Any, key: str) -> str:
    """Return the class of a whole module that was pickled, or nothing."""
    from torch import nn

    inside = content.get(key) if isinstance(content, Mapping) and key else content
    return type(inside).__qualname__ if isinstance(inside, nn.Module) else ""


def _is_plain(value: Any) -> bool:
    """Say whether JSON holds the value."""
    if isinstance(value, list):
        return len(value) <= _MOST and all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int, bool))
