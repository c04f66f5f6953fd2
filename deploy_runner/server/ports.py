"""The model's inputs and outputs, and what arrays they take."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .labels import names_samples
from .problems import Invalid, Problem

__all__ = [
    "DATATYPES",
    "Arrays",
    "Port",
    "Ports",
    "Sizes",
    "alike",
    "as_array",
    "check",
    "joined",
    "part",
    "samples_first",
    "with_batches",
]

Arrays = dict[str, "np.ndarray[Any, Any]"]

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""numpy's dtype → the Open Inference Protocol's datatype."""

_LARGEST_SQUARED = {
    "float16": 65504.0**2,
    "float32": float(np.finfo(np.float32).max) ** 2,
    "float64": math.inf,
}

_TAKES = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}
_KINDS = {"f": "floats", "i": "whole numbers", "u": "whole numbers", "b": "booleans", "U": "texts",
          "O": "nulls, objects or numbers too large", "c": "complex numbers"}  # fmt: skip


class Sizes(NamedTuple):
    """The sizes that an axis may have: multiples of `multiple_of` from `min` to `max`, None for no end."""

    multiple_of: int = 1
    min: int = 1
    max: int | None = None

    def __str__(self) -> str:
        most = " or more" if self.max is None else f" to {self.max}"
        multiple = f"multiples of {self.multiple_of}, " if self.multiple_of > 1 else ""
        return f"{multiple}{self.min}{most}"

    def allows(self, size: int) -> bool:
        """Say whether the axis may have this size."""
        return self.min <= size <= (self.max or size) and size % self.multiple_of == 0

    def nearest(self, size: int) -> int:
        """Return the smallest size from `size` on that is allowed, else the largest."""
        found = -(-max(size, self.min) // self.multiple_of) * self.multiple_of
        return found if self.max is None else min(found, self.max // self.multiple_of * self.multiple_of)


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: in `shape` -1 stands for any size, in `axes` is its name, if it has one.

    `batch` is the axis of the samples, None where their number is fixed or it has none, like a mask.
    `sizes` says for each axis which sizes it may have; empty where nothing is known of that.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    batch: int | None = None
    sizes: tuple[Sizes, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.dims}"

    @property
    def dims(self) -> str:
        """Return the shape as it is shown, e.g. [batch, 1, 8, 8]."""
        names = self.axes or ("",) * len(self.shape)
        limits = [f" ({sizes})" if sizes != Sizes() else "" for sizes in self.sizes] or ("",) * len(names)
        parts = [
            str(size) if size >= 0 else (name or "-1") + limit
            for size, name, limit in zip(self.shape, names, limits, strict=True)
        ]
        return f"[{', '.join(parts)}]"

    @property
    def sample(self) -> tuple[int, ...]:
        """Return the shape of one sample, without the axis of the samples (else the first)."""
        return _without(self.shape, self.batch or 0)

    @property
    def datatype(self) -> str:
        """Return the datatype of the Open Inference Protocol."""
        return DATATYPES[self.dtype]

    def fits(self, shape: Sequence[int]) -> bool:
        """Say whether an array of this shape is taken."""
        if self.sizes:
            return len(shape) == len(self.shape) and all(
                sizes.allows(got) if want < 0 else got == want
                for got, want, sizes in zip(shape, self.shape, self.sizes, strict=True)
            )
        if shape and self.batch == 0 and tuple(shape[1:]) == self.shape[1:]:
            return True
        return len(shape) == len(self.shape) and all(
            want < 0 or got == want for got, want in zip(shape, self.shape, strict=True)
        )


class Ports(tuple[Port, ...]):
    """All inputs, or all outputs, in the model's order."""

    @property
    def names(self) -> list[str]:
        """Return the names."""
        return [port.name for port in self]

    def __str__(self) -> str:
        return ", ".join(repr(port.name) for port in self)


def with_batches(inputs: Ports, outputs: Ports) -> tuple[Ports, Ports]:
    """Return the ports with their axes of samples: those called so, else like the first input's first.

    Where that has no name, it is the first axis of each, if it may have any size.
    """
    labels = [label for port in inputs for label in port.axes if names_samples(label)]
    first = inputs[0].axes[0] if inputs and inputs[0].axes else ""
    batch = min(labels, key=lambda label: "batch" not in label.lower(), default=first)

    def placed(port: Port) -> Port:
        if not batch:
            return replace(port, batch=0 if port.shape and port.shape[0] < 0 else None)
        return replace(port, batch=port.axes.index(batch) if port.axes.count(batch) == 1 else None)

    return Ports(map(placed, inputs)), Ports(map(placed, outputs))


def alike(arrays: Arrays, inputs: Ports) -> Hashable:
    """Return what is equal for requests that can be joined: shapes of samples, and what has no samples."""
    return tuple(
        (array.shape, array.tobytes()) if port.batch is None else _without(array.shape, port.batch)
        for port in inputs
        for array in [arrays[port.name]]
    )


def joined(requests: Sequence[Arrays], inputs: Ports) -> Arrays:
    """Return the inputs of several requests as those of one, along the axes of the samples.

    What has no samples is the same in all of them.
    """
    return {
        p.name: requests[0][p.name]
        if p.batch is None
        else np.concatenate([r[p.name] for r in requests], axis=p.batch)
        for p in inputs
    }


def part(outputs: Arrays, ports: Ports, start: int, stop: int) -> Arrays:
    """Return the outputs of the samples from `start` to `stop`, each of which has an axis of them."""
    return {
        p.name: np.ascontiguousarray(outputs[p.name][(slice(None),) * p.batch + (slice(start, stop),)])
        if p.batch
        else outputs[p.name][start:stop]
        for p in ports
    }


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def samples_first(array: np.ndarray[Any, Any], port: Port) -> np.ndarray[Any, Any]:
    """Return an array with the axis of its samples first."""
    return np.moveaxis(array, port.batch, 0) if port.batch else array


def as_array(
    value: Any, port: Port, loc: tuple[str | int, ...], *, finite: bool, listed: bool = False
) -> np.ndarray[Any, Any]:
    """Return what was given for an input as an array of its dtype and rank.

    Numbers are taken where nothing of them is lost but floats' precision. Rows that are flat, and a
    sample without its batch axis, get the input's shape. In what is `listed` the samples come first,
    wherever the input has them. `finite` refuses NaN and infinities, which text formats have no number
    for; what becomes one of them in the input's dtype is always refused. Raises Invalid.
    """
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError):
        raise _invalid(loc, port, "its lists have different lengths") from None
    want = np.dtype(port.dtype)
    if found.size == 0:
        raise _invalid(loc, port, "the batch is empty")
    if found.dtype.kind not in _TAKES[want.kind]:
        raise _invalid(loc, port, f"{_KINDS.get(found.dtype.kind, found.dtype.name)} were given")
    if want.kind in "iu" and found.dtype != want:
        info = np.iinfo(want)
        if int(found.min()) < info.min or int(found.max()) > info.max:
            raise _invalid(loc, port, f"a number is outside {info.min} to {info.max}")
    if found.dtype == np.float64 and port.dtype in _LARGEST_SQUARED and _surely_fits(found, port.dtype):
        return _shaped(found.astype(want, order="C"), port, listed)
    with np.errstate(over="ignore"):
        array = found.astype(want, order="C")
    if want.kind == "f" and (finite or found.dtype != want):
        kept = np.isfinite(array)
        if not kept.all() and (finite or (np.isfinite(found) & ~kept).any()):
            raise _invalid(loc, port, "a number is not finite, or too large for it")
    return _shaped(array, port, listed)


def _surely_fits(found: np.ndarray[Any, Any], want: str) -> bool:
    """Say that all doubles are finite and in range: the sum of their squares is below the largest's square.

    Half the time of looking at each; where it says no, each is looked at.
    """
    flat = found.ravel()
    return bool(flat.dot(flat) < _LARGEST_SQUARED[want])


def _shaped(array: np.ndarray[Any, Any], port: Port, listed: bool) -> np.ndarray[Any, Any]:
    if listed and port.batch is None and array.ndim == len(port.shape) + 1 and (array == array[:1]).all():
        return array[:1].reshape(array.shape[1:])  # Each sample came with what all of them share.
    if array.ndim == len(port.shape):
        return np.ascontiguousarray(np.moveaxis(array, 0, port.batch)) if listed and port.batch else array
    if not port.shape:
        return array
    sample = port.sample
    alone = array.ndim == len(sample) and all(
        w in (-1, got) for got, w in zip(array.shape, sample, strict=True)
    )
    fixed = min(sample, default=0) >= 0
    flat = fixed and array.ndim == 2 and array.shape[1] == math.prod(sample) and (listed or not port.batch)
    if not (alone or flat):
        return array
    rows = array[None] if alone else array.reshape(-1, *sample)
    return np.ascontiguousarray(np.moveaxis(rows, 0, port.batch)) if port.batch else rows


def _invalid(loc: tuple[str | int, ...], port: Port, got: str) -> Invalid:
    return Invalid(Problem(loc, f"input {port.name!r} takes {port}; {got}"))


def check(arrays: Mapping[str, np.ndarray[Any, Any]], ports: Ports, max_samples: int) -> int:
    """Check names and shapes; return the number of samples, 0 where the inputs don't say one.

    Raises Invalid with everything that is wrong.
    """
    if (count := _sole(arrays, ports)) is None:
        if problems := tuple(_problems(arrays, ports)):
            raise Invalid(*problems)
        counts = {arrays[port.name].shape[port.batch] for port in ports if port.batch is not None}
        count = counts.pop() if len(counts) == 1 else 0
        largest = max(counts, default=count)
    else:
        largest = count
    if largest > max_samples:
        said = f"the batch has {largest} samples, the limit is {max_samples}"
        raise Invalid(Problem(("body", "inputs"), said))
    return count


def _sole(arrays: Mapping[str, np.ndarray[Any, Any]], ports: Ports) -> int | None:
    """Return the number of samples where there is one input and that fits: the usual case, quickly."""
    port = ports[0]
    if len(ports) != 1 or len(arrays) != 1 or port.name not in arrays:
        return None
    shape = arrays[port.name].shape
    if not port.fits(shape):
        return None
    return 0 if port.batch is None else shape[port.batch]


def _problems(arrays: Mapping[str, np.ndarray[Any, Any]], ports: Ports) -> Iterable[Problem]:
    sizes: dict[str, tuple[int, str]] = {}
    for port in ports:
        loc = ("body", "inputs", port.name)
        array = arrays.get(port.name)
        if array is None:
            yield Problem(loc, f"the input {port.name!r} is missing, {port}")
        elif not port.fits(array.shape):
            yield Problem(loc, f"input {port.name!r} takes {port}; the shape {list(array.shape)} was given")
        else:
            for axis, size in zip(port.axes, array.shape, strict=False):
                known, other = sizes.setdefault(axis, (size, port.name)) if axis else (size, "")
                if known != size:
                    said = f"input {port.name!r} has {axis} {size}, but {other!r} has {known}"
                    yield Problem(loc, said)
    if len(arrays) > len(ports) or any(name not in ports.names for name in arrays):
        for name in arrays:
            if name not in ports.names:
                yield Problem(("body", "inputs", name), f"unknown input {name!r}, the inputs are {ports}")
