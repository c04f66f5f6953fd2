"""Train the models from a fixed seed: `weights(name)` is the state_dict, always the same."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from tests.models import models

EXAMPLES: dict[str, dict[str, Any]] = {
    "cnn": {"example": {"shape": [1, 1, 8, 8]}},
    "mlp": {"example": {"shape": [1, 64]}},
    "text": {"example": {"shape": [1, 5], "dtype": "int64", "high": 11}, "dynamic": {"tokens": {"0": "batch", "1": "length"}}},
    "memory": {"example": {"shape": [1, 5, 4]}, "dynamic": {"steps": {"0": "batch", "1": "length"}}},
    "branch": {"example": {"shape": [2, 4]}},
    "two": {"example": {"left": {"shape": [1, 4]}, "right": {"shape": [1, 4]}}},
    "tied": {"example": {"shape": [1, 3], "dtype": "int64", "high": 7}},
    "custom": {"example": {"shape": [2, 4]}},
}  # fmt: skip
"""Name → the parameters of model.prepare."""

_UNTRAINED = (
    "custom",
    "counting",
    "nested",
    "random",
    "quiet",
    "flagged",
    "number",
    "sized",
    "writing",
    "values",
)
"""No gradient, or nothing to learn: as they are made."""

_STEPS = 150
_BATCH = 64


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(data.target)


def batch(name: str, generator: torch.Generator) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the inputs and labels of one batch; each task can be learnt."""
    if name in ("cnn", "mlp"):
        images, labels = digits()
        rows = torch.randint(len(images), (_BATCH,), generator=generator)
        return (images[rows] if name == "cnn" else images[rows].flatten(1),), labels[rows]
    if name == "text":
        tokens = torch.randint(11, (_BATCH, 5), generator=generator)
        return (tokens,), (tokens > 5).sum(1).clamp(1, 3) - 1
    if name == "tied":
        tokens = torch.randint(7, (_BATCH, 3), generator=generator)
        return (tokens,), tokens
    if name == "memory":
        steps = torch.randn(_BATCH, 5, 4, generator=generator)
        return (steps,), (steps[:, -1].sum(1) > 0).long()
    x = torch.randn(_BATCH, 4, generator=generator)
    if name == "two":
        other = torch.randn(_BATCH, 4, generator=generator)
        return (x, other), (x + other)[:, :3].argmax(1)
    return (x,), x[:, :3].argmax(1)


@functools.cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """Return a model's trained state_dict."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    module: nn.Module = getattr(models, name)()
    if name in _UNTRAINED:
        return module.state_dict()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    module.train()
    for _ in range(_STEPS):
        inputs, labels = batch(name, generator)
        result = module(*inputs)
        logits = result["sum"] if isinstance(result, dict) else result
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        optimizer.step()
    return module.eval().state_dict()
