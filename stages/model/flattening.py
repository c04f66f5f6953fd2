"""Give the tensors of what forward() returns their names, the same wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, counted

from . import bundles, results
from .nesting import Path, flat_names, shown

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["flatten_outputs", "left_out", "named_arrays"]


def named_arrays(value: Any, names: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Return a module's result as arrays by name."""
    return {name: bundles.to_array(tensor) for name, tensor in flatten_outputs(value, names).items()}


def flatten_outputs(value: Any, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Return a module's result as named tensors; None and what is no tensor is left out.

    Their names are those of `nesting`; without keys and fields `output`, or `output_0`, `output_1`, …
    """
    import torch

    kept = [(path, part) for path, part in results.parts(value) if isinstance(part, torch.Tensor)]
    if not kept:
        raise StageError(f"the model returned {type(value).__name__} without a tensor in it")
    if names is None:
        names = _output_names([path for path, _ in kept])
    if len(names) != len(kept):
        raise StageError(f"the model has {counted(len(kept), 'output')}, but output_names has {len(names)}")
    return dict(zip(names, (part for _, part in kept), strict=True))


def _output_names(paths: Sequence[Path]) -> list[str]:
    if any(isinstance(part, str) for path in paths for part in path):
        try:
            return flat_names(paths, of="output")
        except StageError as error:
            raise StageError(f"of the model's result {error.message}", fix="set `output_names`") from None
    return ["output"] if len(paths) == 1 else [f"output_{place}" for place in range(len(paths))]


def left_out(value: Any) -> dict[str, str]:
    """Return what a result holds besides tensors and None: its place, and its type."""
    import torch

    others = [(path, part) for path, part in results.parts(value) if not isinstance(part, torch.Tensor)]
    return {shown(path): type(part).__name__ for path, part in others}
