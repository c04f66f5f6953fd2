"""Load weights into a module: every name its own values, tied names one tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

if TYPE_CHECKING:
    import torch
    from torch import nn


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, tied ones under each of their names.

    Raises StageError where it isn't one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise StageError(f"{path.name} is not a safetensors file: {error}") from None
    return weights | {alias: weights[name] for alias, name in tied.items() if name in weights}


def load(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Make weights the module's own, without copying them; tied tensors are one again.

    Raises StageError that lists missing and unexpected keys and every difference of shape. A
    key that is missing from the file but shares its memory with one that is there is tied.
    """
    expected = module.state_dict(keep_vars=True)
    storages: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        storages.setdefault(tensor.data_ptr() if tensor.numel() else id(tensor), []).append(name)
    given = dict(weights)
    for names in storages.values():
        present = next((n for n in names if n in given), None)
        if present is not None and len(names) > 1:
            given |= {name: given[present] for name in names if name not in given}
    problems = _differences(expected, given)
    if problems:
        raise StageError(
            f"the checkpoint doesn't fit the model: {'; '.join(problems)}",
            fix="name another factory, other kwargs, or the checkpoint's key",
        )
    cast = {name: tensor.to(expected[name].dtype) for name, tensor in given.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    for names in storages.values():
        for name in names[1:]:
            _tie(module, name, names[0])


def _tie(module: nn.Module, name: str, to: str) -> None:
    """Make two names one tensor again: assigning has given each its own."""
    owner, _, attribute = name.rpartition(".")
    other, _, original = to.rpartition(".")
    setattr(module.get_submodule(owner), attribute, getattr(module.get_submodule(other), original))


def _differences(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    problems = []
    for title, names in (
        ("missing", [n for n in expected if n not in given]),
        ("unexpected", [n for n in given if n not in expected]),
    ):
        if names:
            problems.append(f"{title} {_some(names)}")
    shapes = [
        f"{n} is {tuple(given[n].shape)}, the model wants {tuple(expected[n].shape)}"
        for n in expected
        if n in given and given[n].shape != expected[n].shape
    ]
    return problems + ([f"shapes differ: {_some(shapes)}"] if shapes else [])


def _some(items: Sequence[str], limit: int = 5) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest
