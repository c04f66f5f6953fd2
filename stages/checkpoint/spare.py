"""Memory for tensors that are put together from parts: a file without a name, not the process's own.

The system can write it out and take it back: weights that are assembled cost no more than mapped ones.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 64
_Key = TypeVar("_Key")


def allocate(wanted: Mapping[_Key, torch.Tensor]) -> dict[_Key, torch.Tensor]:
    """Return tensors of these shapes and types (of those on the meta device, too), full of zeros."""
    import torch

    places, end = {}, 0
    for name, tensor in wanted.items():
        places[name] = end
        size = tensor.numel() * tensor.element_size()
        end += size + -size % _ALIGNMENT
    if not end:
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in wanted.items()}
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, end)
        memory = torch.frombuffer(mmap.mmap(file.fileno(), end), dtype=torch.uint8)
    return {
        name: memory[at : at + t.numel() * t.element_size()].view(t.dtype).view(t.shape)
        for (name, at), t in zip(places.items(), wanted.values(), strict=True)
    }
