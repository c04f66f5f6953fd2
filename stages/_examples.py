"""Make the reference inputs of a model: real samples where there are some, else seeded noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import Field, StageError, StageParams

from ._bundle import Port
from ._calls import arguments, bind, in_order

if TYPE_CHECKING:
    from torch import nn

DType = Literal["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]

_BATCHES = (2, 1, 5)
_SAMPLES = 64
_LONGER = 3


class Example(StageParams):
    """One example input."""

    shape: list[int] = Field(description="its shape, the batch first, e.g. [1, 3, 224, 224]")
    dtype: DType = Field("float32", description="its element type")
    high: int = Field(2, ge=1, description="integers are drawn from 0 … high - 1")


def ports_of(
    module: nn.Module,
    example: Example | Mapping[str, Example],
    dynamic: Mapping[str, Mapping[str, str]] | None,
) -> list[tuple[Port, Example]]:
    """Return the inputs in forward()'s order. Raises StageError for a name it doesn't have."""
    if isinstance(example, Example):
        example = {next(iter(arguments(module)), "input"): example}
    for name, given in example.items():
        if any(size < 0 for size in given.shape):
            raise StageError(f"the example {name!r} has the shape {given.shape}: a size is negative",
                             fix="give a size that occurs, and name what varies in `dynamic`")  # fmt: skip
    for name in dynamic or {}:
        if name not in example:
            raise StageError(f"dynamic: there is no input {name!r}, only {', '.join(example)}")
    ordered = in_order(module, list(example))
    bind(module, ordered)
    return [(_port(name, example[name], dynamic), example[name]) for name in ordered]


def _port(name: str, example: Example, dynamic: Mapping[str, Mapping[str, str]] | None) -> Port:
    if dynamic is None:
        axes = {0: "batch"} if example.shape else {}
    else:
        axes = {_axis(name, axis, example): label for axis, label in dynamic.get(name, {}).items()}
    return Port(name, example.dtype, tuple(example.shape), axes)


def _axis(name: str, axis: str, example: Example) -> int:
    if not axis.isdecimal() or int(axis) >= len(example.shape):
        raise StageError(f"dynamic: the input {name!r} has no axis {axis}, its shape is {example.shape}")
    return int(axis)


def reference_inputs(
    ports: Sequence[tuple[Port, Example]], samples: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Return case name → arrays by input name.

    Where axes are dynamic the cases have different sizes of each; the first has a batch of two
    or more, because exporters take a batch of one for a constant. The noise hangs on the shapes
    alone: a gate that holds must not break because something else of the pipeline has changed.
    """
    if samples is not None:
        return _from_samples(ports, samples)
    labels = {label for port, _ in ports for label in port.dynamic.values()}
    if not labels:
        return {"example": {port.name: _noise(port.shape, e, 0) for port, e in ports}}
    cases = {}
    for index, batch in enumerate(_BATCHES):
        sizes = {
            label: batch if label == "batch" else _size(ports, label) + _LONGER * index
            for label in sorted(labels)
        }
        name = "-".join(f"{label}{size}" for label, size in sizes.items())
        cases[name] = {port.name: _noise(_shape(port, sizes), e, index) for port, e in ports}
    return cases


def _size(ports: Sequence[tuple[Port, Example]], label: str) -> int:
    return next(p.shape[axis] for p, _ in ports for axis, found in p.dynamic.items() if found == label)


def _shape(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[port.dynamic[i]] if i in port.dynamic else n for i, n in enumerate(port.shape))


def _noise(shape: Sequence[int], example: Example, seed: int) -> Any:
    import numpy as np

    generator = np.random.default_rng(seed)
    if example.dtype.startswith("float"):
        return generator.standard_normal(shape).astype(example.dtype)
    return generator.integers(0, example.high, shape).astype(example.dtype)


def _from_samples(
    ports: Sequence[tuple[Port, Example]], samples: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    arrays: dict[str, Any] = {}
    for port, _ in ports:
        name = port.name if port.name in samples else "x" if len(ports) == 1 else port.name
        if name not in samples:
            raise StageError(f"the samples have no array {port.name!r}, they have {', '.join(samples)}")
        array = samples[name].astype(port.dtype, copy=False)
        if array.shape[1:] != port.shape[1:] and not set(port.dynamic) - {0}:
            raise StageError(f"the samples {name!r} have the shape {array.shape[1:]} each, "
                             f"the example has {port.shape[1:]}")  # fmt: skip
        arrays[port.name] = array
    count = min(len(array) for array in arrays.values())
    if count < 2:
        raise StageError("the samples hold fewer than two: batches can't be compared")
    several, one = f"samples{min(_SAMPLES, count)}", "samples1"
    if not any(0 in port.dynamic for port, _ in ports):
        fixed = {n: a[: p.shape[0]] for (p, _), (n, a) in zip(ports, arrays.items(), strict=True)}
        return {"samples": fixed}
    return {
        several: {name: array[:_SAMPLES] for name, array in arrays.items()},
        one: {name: array[:1] for name, array in arrays.items()},
    }
