"""A model of the zoo as data: how it is built, what it takes, and which sizes may vary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["CASES", "Entry", "Family", "Given", "made"]

Family = Literal["timm", "torchvision", "transformers", "handwritten"]
Sizes = tuple[int, int, int]

BATCH: Sizes = (2, 4, 7)
CASES: Mapping[str, int | None] = {"the example": 0, "one sample": None, "other sizes": 1, "third sizes": 2}
"""Case → which of the sizes of each axis it has; a single sample has the example's other sizes."""


@dataclass(frozen=True, slots=True)
class Given:
    """An input. In `shape` a text is the label of an axis that may vary."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: int = 0
    high: int = 2
    fill: Literal["random", "mask", "lengths"] = "random"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model. `sizes` are of each label the example's, and two that no converter is shown.

    `multiples` says of what an axis is a multiple, as the product's user may say. `folder` names a model of
    tests/models/hub.py instead of a factory, `params` are further ones of the stage that reads the model.
    """

    name: str
    family: Family
    inputs: Mapping[str, Given]
    factory: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)
    folder: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)

    def sizes_of(self, case: str) -> dict[str, int]:
        """Return label → size in one of CASES."""
        labels = {label for given in self.inputs.values() for label in given.shape if isinstance(label, str)}
        known = {"batch": BATCH, **self.sizes}
        chosen = CASES[case]
        found = {label: known[label][chosen or 0] for label in sorted(labels)}
        if chosen is None and "batch" in found:
            found["batch"] = 1
        return found

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """Return input → axis → label."""
        return {name: {axis: size for axis, size in enumerate(given.shape) if isinstance(size, str)}
                for name, given in self.inputs.items()}  # fmt: skip


def made(entry: Entry, case: str) -> dict[str, Any]:
    """Return seeded arrays of one case; rows get shorter where a mask or lengths say how long they are."""
    sizes = entry.sizes_of(case)
    generator = np.random.default_rng(1000 + list(CASES).index(case))
    longest = min((n for label, n in sizes.items() if label != "batch"), default=1)
    return {name: _array(given, sizes, generator, longest) for name, given in entry.inputs.items()}


def _array(given: Given, sizes: Mapping[str, int], generator: np.random.Generator, longest: int) -> Any:
    shape = tuple(sizes[n] if isinstance(n, str) else n for n in given.shape)
    if given.fill == "random":
        if given.dtype.startswith("float"):
            return generator.standard_normal(shape).astype(given.dtype)
        return generator.integers(given.low, given.high, shape).astype(given.dtype)
    rows = shape[0]
    longest = shape[-1] if given.fill == "mask" else longest
    lengths = np.maximum(1, longest - np.arange(rows) * max(1, longest // (rows + 1)))
    if given.fill == "lengths":
        return lengths.astype(given.dtype)
    return (np.arange(longest) < lengths[:, None]).astype(given.dtype)
