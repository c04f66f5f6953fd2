"""What nn.Module.get_extra_state() returned, as JSON and tensors: never as a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy_runner.sdk import StageError

SUFFIX = "_extra_state"
"""The last part of the key that torch stores it under."""

_MOST_DEEP = 50


def pack(name: str, value: Any) -> tuple[Any, dict[str, Any]]:
    """Return a value as JSON, and the tensors inside it by the names they get in the file.

    Lists, tuples, dicts, tensors, numbers, texts, booleans and None come back as they were. Raises
    StageError that names the key and the type for everything else.
    """
    tensors: dict[str, Any] = {}
    return _packed(name, value, tensors, 0), tensors


def _packed(name: str, value: Any, tensors: dict[str, Any], depth: int) -> Any:
    import numpy as np
    import torch

    if depth > _MOST_DEEP:
        raise StageError(f"{name!r} is nested more than {_MOST_DEEP} deep")
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        place = f"{name}.{len(tensors)}"
        tensors[place] = value
        return {"tensor": place}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_packed(name, inner, tensors, depth + 1) for inner in value]}
    if isinstance(value, Mapping):
        pairs = [[_packed(name, part, tensors, depth + 1) for part in pair] for pair in value.items()]
        return {"dict": pairs}
    raise StageError(
        f"the extra state {name!r} contains a {type(value).__name__}, which can't be stored without pickle",
        fix="get_extra_state() must return tensors, numbers, strings, lists and dicts",
    )


def unpack(packed: Any, tensors: Mapping[str, Any]) -> Any:
    """Return the value again. Raises ValueError, KeyError or TypeError for what `pack` never makes."""
    if not isinstance(packed, dict):
        if isinstance(packed, list):
            raise ValueError("a bare list in an extra state")
        return packed
    ((kind, inner),) = packed.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {unpack(key, tensors): unpack(value, tensors) for key, value in inner}
    values = [unpack(value, tensors) for value in inner]
    return {"list": values, "tuple": tuple(values)}[kind]
