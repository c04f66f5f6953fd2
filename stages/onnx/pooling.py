"""Adaptive average pooling of any size, in operators that ONNX has.

torch's newer exporter decomposes it for the example's size: files are wrong at others. Its windows are
weights here, which are computed from the size at hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["exact_pooling"]


def exact_pooling() -> Any:
    """Return a context in which pooling of a size that is not known is a weighted sum."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    pools = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d)

    class Pooling(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func not in pools:
                return func(*args, **kwargs)
            return _pooled(func, *args, **kwargs)

    def _pooled(func: Any, values: torch.Tensor, output_size: Any) -> torch.Tensor:
        axes = 2 if func is functional.adaptive_avg_pool2d else 1
        wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * axes
        counts = dict(zip(range(-axes, 0), wanted, strict=True))
        sizes = values.shape[-axes:]
        if all(count == 1 for count in wanted) or not any(isinstance(size, torch.SymInt) for size in sizes):
            return func(values, output_size)  # type: ignore[no-any-return]
        result = values
        for axis, count in counts.items():
            if count is not None:
                shares = result.transpose(axis, -1).unsqueeze(-2) * _windows(count, values, axis)
                result = shares.sum(-1).transpose(axis, -1)
        return result

    return Pooling()


def _windows(count: int, values: torch.Tensor, axis: int) -> torch.Tensor:
    """Return [count, size of the axis]: in each row the share of every value in the mean of a window.

    The size is summed up, not asked for: exporters lose the expressions that sizes become, in products of
    matrices, too.
    """
    import torch

    line = values.transpose(axis, -1)[(0,) * (values.ndim - 1)]
    ones = torch.ones_like(line, dtype=torch.int64)
    index, place, size = torch.arange(count), ones.cumsum(0) - 1, ones.sum()
    start, end = (index * size) // count, ((index + 1) * size + count - 1) // count
    inside = (place >= start[:, None]) & (place < end[:, None])
    return inside.to(values.dtype) / (end - start)[:, None].to(values.dtype)
