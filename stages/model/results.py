"""Take apart what forward() returns: tensors in dicts, lists, tuples and classes with fields.

It imports nothing but torch, since torch.save_full runs it in a process that has nothing of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["chosen", "is_plain", "parts", "places", "tensors"]


def parts(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield path and content of everything in a result that has no further parts, None left out."""
    children = None if _is_tensor(value) else _children(value)
    if children is None:
        if value is not None:
            yield path, value
        return
    for key, child in children:
        yield from parts(child, (*path, key))


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _children(value: Any) -> list[tuple[str | int, Any]] | None:
    """Return the parts of a container by key, field or index; None for what is no container."""
    from torch.utils import _pytree

    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if type(value) in _pytree.SUPPORTED_NODES:  # What a library has told torch of, such as a cache of keys.
        return list(enumerate(_pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0]))
    return None


def tensors(value: Any) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a result in order."""
    return tuple(part for _, part in parts(value) if _is_tensor(part))


def places(value: Any) -> list[int] | None:
    """Return which parts of a result are tensors; None where every exporter takes it as it is."""
    return None if is_plain(value) else [i for i, (_, part) in enumerate(parts(value)) if _is_tensor(part)]


def chosen(value: Any, kept: tuple[int, ...]) -> tuple[Any, ...]:
    """Return these parts of a result: where it is traced, numbers such as sizes are tensors too."""
    return tuple(part for i, (_, part) in enumerate(parts(value)) if i in kept)


def is_plain(value: Any) -> bool:
    """Say whether every exporter takes a result as it is."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    if type(value) is list:
        return all(map(_is_tensor, value))
    if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
        return all(isinstance(key, str) and _is_tensor(child) for key, child in value.items())
    return _is_tensor(value)
