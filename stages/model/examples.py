"""Make the reference inputs of a model: real samples where there are some, else seeded noise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from deploy_runner.sdk import Field, StageError, StageParams

from .axes import Axis, axis_of, batch_label, merged, rows
from .bundles import Port
from .calls import arguments, bind, in_order

if TYPE_CHECKING:
    from torch import nn

DType = Literal["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]
Fill = Literal["random", "mask", "padding", "gaps", "lengths"]
_LABEL = r"^\w[^/{}$]*$"
_MASK = re.compile(r"(?:^|_)masks?(?:_|$)")
_LENGTHS = re.compile(r"(?:^|_)(?:lengths?|lens?)(?:_|$)")


class Example(StageParams):
    """One example input."""

    shape: list[int] = Field(description="its shape, e.g. [1, 3, 224, 224]; [] for a single number")
    dtype: DType = Field("float32", description="its element type")
    low: int = Field(0, description="the smallest of the integers that are drawn")
    high: int = Field(2, ge=1, description="integers are drawn from low to high - 1")
    fill: Fill | None = Field(
        None,
        description="what it is made of: random values; a mask (ones, then zeros on the right), a mask of "
        "padding (zeros, then ones), one with gaps, or the lengths of the samples; no row is empty "
        "(default: by its name)",
    )


class DynamicAxis(StageParams):
    """An axis that may vary, and the sizes that it may have."""

    name: str = Field(pattern=_LABEL, description="its label: axes with the same label have the same size")
    multiple_of: int = Field(1, ge=1, description="only multiples of this number")
    min: int = Field(1, ge=1, description="the smallest size")
    max: int | None = Field(None, ge=1, description="the largest size (default: any)")


Label = Annotated[str, Field(pattern=_LABEL)]
Dynamic = dict[str, dict[str, Label | DynamicAxis]]
"""Input → axis → what may vary there."""


def ports_of(
    module: nn.Module, example: Example | Mapping[str, Example], dynamic: Dynamic | None
) -> tuple[list[tuple[Port, Example]], str | None, bool]:
    """Return the inputs in forward()'s order, the batch's label, and whether it is called so.

    Raises StageError for a name that forward() doesn't have.
    """
    if isinstance(example, Example):
        example = {next(iter(arguments(module)), "input"): example}
    for name, given in example.items():
        if any(size < 0 for size in given.shape):
            raise StageError(f"the example {name!r} has the shape {given.shape}: a size is negative",
                             fix="use a real size, and list the axes that vary in `dynamic`")  # fmt: skip
    for name in dynamic or {}:
        if name not in example:
            raise StageError(f"dynamic: there is no input {name!r}, only {', '.join(example)}")
    ordered = in_order(module, list(example))
    bind(module, ordered)
    ports = [(port_of(name, example[name], dynamic), example[name]) for name in ordered]
    batch, named = batch_label([port.dynamic for port, _ in ports])
    return [(with_batch(port, batch), given) for port, given in ports], batch, named


def with_batch(port: Port, batch: str | None) -> Port:
    """Return the port with the axis of its samples."""
    return replace(port, batch=axis_of(port.dynamic, batch))


def axes_of(dynamic: Dynamic | None, ports: Sequence[tuple[Port, Example]]) -> dict[str, Axis]:
    """Return label → the sizes that it may have. Raises StageError for a contradiction."""
    said: dict[str, list[Axis]] = {label: [] for port, _ in ports for label in port.dynamic.values()}
    for axes in (dynamic or {}).values():
        for given in axes.values():
            if isinstance(given, DynamicAxis):
                said[given.name].append(Axis(given.name, given.multiple_of, given.min, given.max))
    return {label: merged(label, given) for label, given in sorted(said.items())}


def port_of(name: str, example: Example, dynamic: Dynamic | None) -> Port:
    """Return an input with the axes that vary. Raises StageError for one that it doesn't have."""
    if dynamic is None:
        axes = {0: "batch"} if example.shape else {}
    else:
        axes = {
            _axis(name, axis, example): given.name if isinstance(given, DynamicAxis) else given
            for axis, given in dynamic.get(name, {}).items()
        }
    return Port(name, example.dtype, tuple(example.shape), axes)


def _axis(name: str, axis: str, example: Example) -> int:
    if not axis.isdecimal() or int(axis) >= len(example.shape):
        raise StageError(f"dynamic: the input {name!r} has no axis {axis}, its shape is {example.shape}")
    return int(axis)


def noise(
    shape: Sequence[int], example: Example, seed: tuple[int, int], *, name: str = "", longest: int = 1
) -> Any:
    """Return seeded values of an example's type.

    What is called a mask or lengths has realistic ones, unless `fill` says otherwise: the longest sample
    stands first, and none is empty. `longest` is the largest value of lengths.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    fill = example.fill or _fill_of(name, example)
    if fill == "lengths":
        return np.resize(falling(shape[0] if shape else 1, longest), shape).astype(example.dtype)
    if fill != "random" and shape:
        return np.broadcast_to(mask(shape, fill), shape).astype(example.dtype)
    if example.dtype.startswith("float"):
        return generator.standard_normal(shape).astype(example.dtype)
    return generator.integers(min(example.low, example.high - 1), example.high, shape).astype(example.dtype)


def _fill_of(name: str, example: Example) -> Fill:
    """Return what an input of this name and type holds."""
    if _MASK.search(name) and example.high == 2:
        return "padding" if "pad" in name else "mask"
    return "lengths" if _LENGTHS.search(name) and "int" in example.dtype else "random"


def falling(rows: int, longest: int) -> list[int]:
    """Return the lengths of samples, the longest first, in falling order: packed sequences need it."""
    step = max(1, longest // (rows + 1))
    return [max(1, longest - row * step) for row in range(rows)]


def mask(shape: Sequence[int], fill: Fill = "mask") -> Any:
    """Return a mask of the last axis, whose rows are on the first; it broadcasts to the shape."""
    import numpy as np

    size, rows = shape[-1], shape[0] if len(shape) > 1 else 2
    lengths = np.array(falling(rows, size))
    if fill == "padding":  # Whichever of its values means padding, no row has only that.
        lengths = np.clip(lengths, 1, max(1, size - 1))
    places = np.arange(size)
    kept = places < lengths[:, None]
    if fill == "padding":
        kept = ~kept
    if fill == "gaps":
        kept = (places == 0) | (places > size - lengths[:, None])
    return kept.reshape(rows, *(1,) * (len(shape) - 2), size) if len(shape) > 1 else kept[1]


def chosen_samples(ports: Sequence[tuple[Port, Any]], samples: Mapping[str, Any]) -> dict[str, Any]:
    """Return the array of each input, `x` for the only one, as many samples of each as all have.

    Raises StageError for one that is missing, or has sizes that the example doesn't have.
    """
    arrays: dict[str, Any] = {}
    for port, _ in ports:
        name = port.name if port.name in samples else "x" if len(ports) == 1 else port.name
        if name not in samples:
            raise StageError(f"the samples have no array {port.name!r}, only {', '.join(samples)}")
        arrays[port.name] = _sample_of(port, name, samples[name].astype(port.dtype, copy=False))
    counts = [arrays[p.name].shape[p.batch] for p, _ in ports if p.batch is not None]
    if counts and min(counts) < 2:
        raise StageError("there is only one sample: batches can't be compared")
    return {p.name: rows(arrays[p.name], p.batch, slice(min(counts, default=0))) for p, _ in ports}


def _sample_of(port: Port, name: str, array: Any) -> Any:
    fixed = [axis for axis in range(len(port.shape)) if axis not in port.dynamic]
    if array.ndim == len(port.shape) and array.ndim and 0 in fixed and array.shape[0] > port.shape[0]:
        array = array[: port.shape[0]]  # A batch of one size.
    if array.ndim != len(port.shape) or any(array.shape[axis] != port.shape[axis] for axis in fixed):
        raise StageError(f"the samples {name!r} have the shape {array.shape[1:]} each, "
                         f"the example has {port.shape[1:]}")  # fmt: skip
    return array
