"""Which tensors are one: the same storage, offset, shape, stride and type, not only the same address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def place(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Return where a tensor's values are, and how they are laid out.

    None where that says nothing: on the meta device, without elements, or without a storage.
    A matrix and its transpose begin at the same address; they are not one tensor.
    """
    import torch

    if torch.nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
        return None
    if tensor.device.type == "meta" or not tensor.numel():
        return None
    storage = tensor.untyped_storage().data_ptr()
    if not storage:
        return None
    flags = (tensor.is_conj(), tensor.is_neg())
    return (storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, flags)


def groups(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the names of each tensor that has several: one object, or one place in memory."""
    found: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        found.setdefault(place(tensor) or id(tensor), []).append(name)
    return [names for names in found.values() if len(names) > 1]
