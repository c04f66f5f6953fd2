"""Read what a server answers in JSON, whose null stands for every number that isn't finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .compare import Model

if TYPE_CHECKING:
    import numpy as np

    from .bundles import Case

__all__ = ["answering"]


def answering(cases: Sequence[Case], ask: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Model:
    """Return a server as a model that is run on the cases, in their order.

    `ask` returns nested lists by output name. A null stands for what the case has at its place if that
    is not finite, else for NaN; an infinity that is written as such stands for itself.
    """
    order = iter(cases)

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        expected = next(order).outputs
        return {name: _numbers(values, expected.get(name)) for name, values in ask(arrays).items()}

    return run


def _numbers(values: Any, expected: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    import numpy as np

    array = np.asarray(values)
    if array.dtype.kind != "O":
        return array
    null = np.equal(array, np.array(None))
    numbers = np.where(null, np.nan, array).astype(np.float64)
    if expected is not None and expected.shape == numbers.shape and expected.dtype.kind == "f":
        numbers = np.where(null & ~np.isfinite(expected), expected, numbers)
    return numbers
