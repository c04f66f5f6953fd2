"""How far a right conversion may be from the reference: by the model's own rounding.

Allowed is 8 * max|y - y64| + 16 * eps * max|y64| for each output of each case, where y is what the module
computes in its own type, y64 the same module in float64, and eps the rounding of the output's type. Two
runtimes that order sums differently differ by as much as either from the truth; a wrong epsilon of a
normalisation is already beyond it. Measured on 15 nets of all kinds at scales from 0.1 to 10: every right
file has 8 times of room.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import bundles
from .calls import Arguments, call
from .compare import eps_limit, largest
from .flattening import flatten_outputs

if TYPE_CHECKING:
    from torch import nn

    from .bundles import Case

__all__ = ["Precise", "eps_of", "fits_twice"]

_LARGEST_BYTES = 500 << 20
"""Above it no second copy is made, of twice the size."""
_MANY = 256
"""The largest error of so many numbers says what it is for others; that of a few may be small by chance."""


def eps_of(dtype: str) -> float | None:
    """Return the rounding of a floating type of torch, or None for others."""
    import numpy as np

    if hasattr(np, dtype):
        return float(np.finfo(dtype).eps) if np.dtype(dtype).kind in "fc" else None
    import torch

    kind = getattr(torch, dtype)
    return float(torch.finfo(kind).eps) if kind.is_floating_point or kind.is_complex else None


def fits_twice(module: nn.Module) -> bool:
    """Say whether a module is small enough for a second copy of it."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(t.numel() * t.element_size() for t in tensors) <= _LARGEST_BYTES


@dataclass(frozen=True)
class Precise:
    """A module in float64, or nothing if it can't run in float64."""

    module: nn.Module | None
    arguments: Arguments | None = None

    @classmethod
    def of(cls, module: nn.Module, arguments: Arguments | None = None) -> Precise:
        """Copy a module and make it compute in float64."""
        if not fits_twice(module):
            return cls(None)
        try:
            return cls(copy.deepcopy(module).double(), arguments)
        except Exception:  # Some modules can't be copied, or refuse another type.
            return cls(None)

    def of_cases(
        self, cases: Sequence[Case], alike: Sequence[Hashable], dtypes: Mapping[str, str]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return `allowed` by case; of those that are `alike` (but for their batch) one is run in float64.

        The others are allowed the same share of their largest value.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        measured: dict[Hashable, dict[str, dict[str, float]]] = {}
        for case, kind in zip(cases, alike, strict=True):
            if kind in measured:
                found[case.name] = _shared(measured[kind], case.outputs, dtypes)
                continue
            found[case.name] = self.allowed(case.inputs, case.outputs, dtypes)
            if all(array.size >= _MANY for array in case.outputs.values()):
                measured[kind] = found[case.name]
        return found

    def allowed(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], dtypes: Mapping[str, str]
    ) -> dict[str, dict[str, float]]:
        """Return each output's `scale`, its `own_error` if that can be measured, and what is `allowed`."""
        exact = self._run(inputs, list(outputs))
        found: dict[str, dict[str, float]] = {}
        for name, array in outputs.items():
            true = exact.get(name)
            if true is None or true.shape != array.shape:
                found[name] = _row(array, dtypes[name], largest(array), None)
            else:
                found[name] = _row(array, dtypes[name], largest(true), _error(array, true))
        return found

    def _run(self, arrays: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        """Return the outputs that were computed in float64 from end to end."""
        import torch

        if self.module is None:
            return {}
        given = dict(zip(arrays, bundles.tensors(arrays, list(arrays)), strict=True))
        inputs = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
        watch = _rounding()
        try:
            with torch.no_grad(), watch:
                flat = flatten_outputs(call(self.module, inputs, self.arguments), names)
        except Exception:  # Modules that name a type of their own don't run in another.
            return {}
        kept = {name: t.numpy() for name, t in flat.items() if t.dtype == torch.float64}
        return {} if watch.rounded else kept


def _shared(
    measured: Mapping[str, Mapping[str, float]], outputs: Mapping[str, Any], dtypes: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Return what is allowed by the error, as a share of the largest value, that another case had."""
    found = {}
    for name, array in outputs.items():
        scale, own = largest(array), measured[name].get("own_error")
        if own is not None:
            own *= scale / (measured[name]["scale"] or 1.0)
        found[name] = _row(array, dtypes[name], scale, own)
    return found


def _row(array: Any, dtype: str, scale: float, own: float | None) -> dict[str, float]:
    eps = eps_of(dtype)
    if eps is None:
        return {"scale": largest(array), "allowed": 0.0}
    if own is None:
        return {"scale": scale, "allowed": eps_limit(array, eps=eps)}
    return {"scale": scale, "own_error": own, "allowed": 8 * own + 16 * eps * scale}


def _rounding() -> Any:
    """Return a context whose `rounded` says that something was computed in less than float64."""
    import torch
    from torch.utils import _pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    class Rounding(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.rounded = False

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # Keeping dynamo away means importing it, which takes seconds.

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.rounded |= any(t.is_floating_point() and t.dtype != torch.float64 for t in tensors)
            return result

    return Rounding()


def _error(array: Any, true: Any) -> float:
    """Return the largest difference where both are finite."""
    import numpy as np

    values = array.astype(np.float64)
    finite = np.isfinite(values) & np.isfinite(true)
    return float(np.abs(values[finite] - true[finite]).max(initial=0.0))
