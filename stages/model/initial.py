"""Build a module without drawing initial weights that those of a file replace at once.

Drawing a billion numbers takes longer than all else that building does. What a module has beside its
state_dict, as buffers that are not saved, may come of such draws too: `unsaved` tells whether it does.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from .loading import is_lazy

if TYPE_CHECKING:
    from torch import nn

__all__ = ["undrawn", "unsaved"]

_FEW = 4096
"""Smaller parameters are drawn: that takes no time."""
_DRAWS = frozenset({"uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_",
                    "kaiming_uniform_", "kaiming_normal_", "orthogonal_"})  # fmt: skip
"""By name: transformers puts functions of its own in the place of `torch.nn.init`'s."""


def undrawn() -> Any:
    """Return a context in which large parameters keep whatever is in their memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__name__", "") in _DRAWS:
                tensor = args[0] if args else kwargs.get("tensor")
                if isinstance(tensor, torch.nn.Parameter) and tensor.numel() > _FEW:
                    return tensor
            return func(*args, **kwargs)

    return Undrawn()


def unsaved(module: nn.Module) -> str:
    """Return the digest of the tensors and plain values of a module that its state_dict doesn't have.

    Nothing where they can't be read, or where layers wait for their first input.
    """
    import torch

    if is_lazy(module):
        return ""
    digest = hashlib.sha256()
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            return ""
        buffers = {n: b for n, b in part._buffers.items() if n in part._non_persistent_buffers_set}
        for name, value in sorted({**vars(part), **buffers}.items()):
            if isinstance(value, torch.Tensor):
                try:
                    flat = value.detach().contiguous().flatten().view(torch.uint8)
                    content = flat.numpy().data
                except (RuntimeError, TypeError, NotImplementedError):  # Sparse, quantized, on meta.
                    return ""
                digest.update(f"{path}.{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(content)
            elif name != "training" and _is_plain(value):
                digest.update(f"{path}.{name} {value!r}\n".encode())
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return value is None or type(value) in (bool, int, float, str)
