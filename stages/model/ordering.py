"""Refuse a forward() that goes by the order of a mapping's keys, which a pipeline doesn't define.

Two pipelines that differ by that order have the same keys, so a mapping's keys are taken sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from .bundles import Case, Port, arguments_of
from .calls import Arguments
from .eager import Eager
from .nesting import Path, leaves

if TYPE_CHECKING:
    from torch import nn

__all__ = ["refuse_other_order"]

_ROUNDING = 1e-4


def refuse_other_order(
    module: nn.Module, ports: Sequence[Port], example: Mapping[str, Any], case: Case, names: list[str] | None
) -> None:
    """Run a case with the keys as they were written. Raises StageError where that changes its outputs.

    `names` are those that the outputs were given, in their order.
    """
    import numpy as np

    taken = arguments_of(ports)
    inputs = dict(leaves(taken))
    written: Arguments = {name: _named(example[name], (name,), inputs) for name in taken if name in example}
    if [*leaves(written)] == [*leaves(taken)]:
        return
    outputs = Eager(module, names, written)(case.inputs)
    for name, array in case.outputs.items():
        other = outputs.get(name, np.empty(0))
        limit = _ROUNDING * float(np.abs(array[np.isfinite(array)]).max(initial=0)) if array.size else 0.0
        if other.shape != array.shape or not np.allclose(other, array, 0, limit, equal_nan=True):
            nested = " and ".join(key for key, tree in taken.items() if not isinstance(tree, str))
            said = f"forward() depends on the order of the keys of {nested}, which are taken sorted"
            raise StageError(said, fix="write them sorted in `example` if it gets them so; else have the "
                             "factory return a module around it that orders them")  # fmt: skip


def _named(example: Any, path: Path, names: Mapping[Path, str]) -> Any:
    """Return the example with the inputs' names in the place of what they are like, in its order."""
    if isinstance(example, Mapping):
        return {key: _named(child, (*path, key), names) for key, child in example.items()}
    if isinstance(example, list):
        return [_named(child, (*path, place), names) for place, child in enumerate(example)]
    return names[path]
