"""A case of sizes far from those of the others, at which a converter's assumptions no longer hold.

Strides hide sizes: where a model divides them by 32, three cases may have the same few sizes inside.
"""

from __future__ import annotations

import math
from typing import Any

from deploy_runner.sdk import StageError

from . import bundles
from .axes import SOUND
from .bundles import Bundle, Case
from .compare import Model, largest

__all__ = ["far_case"]

_MOST_VALUES = 1 << 22
_ROOM = 4
"""How many times the share of the largest value that the other cases allow: rounding grows with the size."""


def far_case(bundle: Bundle, original: Model) -> Case | None:
    """Return a case of about twice the size along every axis but the batch, if the model takes that."""
    first, sizes = bundle.cases[0], _sizes(bundle)
    if not sizes:
        return None
    arrays = {p.name: _varied(bundles.tiled(first.inputs[p.name], p, sizes)) for p in bundle.inputs}
    if sum(math.prod(array.shape) for array in arrays.values()) > _MOST_VALUES:
        return None
    try:
        outputs = original(arrays)
    except Exception:  # Nobody said that the model takes it.
        return None
    allowed = {name: _share(bundle, name) * largest(array) for name, array in outputs.items()}
    name = ", ".join(f"{label} {size}" for label, size in sorted(sizes.items()))
    return Case(name, arrays, outputs, {n: limit for n, limit in allowed.items() if limit}, first.batch)


def _varied(array: Any) -> Any:
    """Return an array without the repetitions that made it longer: of equal values none is the largest."""
    import numpy as np

    if array.dtype.kind != "f" or np.array_equal(array, np.round(array)):
        return array
    return (array * np.random.default_rng(0).uniform(0.5, 1.5, array.shape)).astype(array.dtype)


def _sizes(bundle: Bundle) -> dict[str, int]:
    """Return label → size; nothing where no axis but the batch has another one."""
    first = bundle.cases[0]
    sizes: dict[str, int] = {}
    changed = False
    for port in bundle.inputs:
        for axis, label in port.dynamic.items():
            size = first.inputs[port.name].shape[axis]
            if axis != port.batch:
                size, before = _far(bundle, label, size), size
                changed = changed or size != before
            sizes.setdefault(label, size)
    return sizes if changed else {}


def _far(bundle: Bundle, label: str, size: int) -> int:
    if size >= SOUND:  # The cases' lengths are far from each other already.
        return size
    try:
        return bundle.axes[label].nearest(2 * size + 5)
    except (KeyError, StageError):
        return size


def _share(bundle: Bundle, name: str) -> float:
    """Return the largest share of an output's largest value that a case allows."""
    return _ROOM * max(
        (case.allowed.get(name, 0.0) / (largest(case.outputs[name]) or 1.0) for case in bundle.cases),
        default=0.0,
    )
