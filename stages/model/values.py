"""Which values an ONNX model's inputs take, by name, type and what the graph does with them.

Ids below the rows of the table that they look up, masks that are padded on the right and empty no row,
lengths within their axis: a model answers to random numbers in their place with nonsense, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .bundles import Port
from .filling import called, filled
from .variation import Sizes, Source, shape_of

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

__all__ = ["Invented", "Kind", "kind_of", "with_sums"]

What = Literal["noise", "ids", "mask", "padding", "lengths", "positions", "pixels", "rate", "one"]

_THROUGH = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Concat", "Transpose", "Expand",
            "Flatten", "Gather", "Split", "Tile"}  # fmt: skip
"""What passes ids on as they are."""
_TABLE = {"DequantizeLinear", "Cast", "Transpose", "Identity"}
_RATE = re.compile(r"(?i)sr|fs|.*sampl(e|ing)_?rate")


@dataclass(frozen=True, slots=True)
class Kind:
    """What an input is; whole numbers are below `high`."""

    what: What
    high: int = 2

    def __str__(self) -> str:
        """Say which values are made."""
        return {
            "ids": f"whole numbers from 0 to {self.high - 1}",
            "mask": "ones with zeros on the right",
            "padding": "zeros with ones on the right",
            "lengths": "lengths",
            "positions": "0, 1, 2, …",
            "pixels": "bytes",
            "rate": "16000",
            "one": "1",
            "noise": "noise",
        }[self.what]


def kind_of(model: onnx.ModelProto, name: str, dtype: str, rank: int) -> Kind:
    """Return what an input is."""
    floats = dtype.startswith("float")
    looked_up = None if floats or dtype == "bool" else rows_looked_up(model, name)
    fill = called(name, dtype, rank)
    if fill in ("mask", "padding") or dtype == "bool":
        return Kind("padding" if fill == "padding" else "mask")
    if fill == "positions":
        return Kind("positions", looked_up or 0)
    if looked_up is not None:
        return Kind("ids", looked_up)
    if fill == "lengths" and rank <= 1:
        return Kind("lengths")
    if floats:
        return Kind("noise")
    if rank == 0 or _RATE.fullmatch(name):
        return Kind("rate" if _RATE.fullmatch(name) else "one")
    if dtype == "uint8" and rank > 2:
        return Kind("pixels", 256)
    return Kind("mask" if rank > 1 else "lengths")


def rows_looked_up(model: onnx.ModelProto, name: str) -> int | None:
    """Return the rows of the smallest table that an input's values look up; None where there is none."""
    tables = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    names, found = {name}, []
    for node in model.graph.node:
        if node.op_type == "Constant":
            tables.update((node.output[0], list(a.t.dims)) for a in node.attribute if a.name == "value")
        elif node.op_type in _TABLE and node.input[0] in tables:
            dims = tables[node.input[0]]
            tables[node.output[0]] = dims[::-1] if node.op_type == "Transpose" else dims
        for table, index, axis in _look_ups(node):
            if index in names and table in tables and len(tables[table]) > axis:
                found.append(int(tables[table][axis]))
        if node.op_type in _THROUGH and names & {
            *(node.input if node.op_type == "Concat" else node.input[:1])
        }:
            names |= set(node.output)
    return min(found, default=None)


def _look_ups(node: onnx.NodeProto) -> Iterator[tuple[str, str, int]]:
    """Yield table, index and axis of what a node looks up."""
    if node.op_type == "Gather":
        yield node.input[0], node.input[1], next((a.i for a in node.attribute if a.name == "axis"), 0)
    elif node.op_type == "EmbedLayerNormalization":
        yield node.input[2], node.input[0], 0
        if node.input[1]:
            yield node.input[4], node.input[1], 0


class Invented(Source):
    """Reference inputs whose values are made up by their kinds, or real samples."""

    def __init__(
        self, ports: Sequence[Port], kinds: Mapping[str, Kind], batch: str | None,
        samples: Mapping[str, Any] | None, *, sums: Mapping[str, Sequence[str | int]],
    ) -> None:  # fmt: skip
        super().__init__([(port, kinds[port.name]) for port in ports], batch, samples)
        self._sums = sums
        self.given = {label: size for label, size in self.given.items() if label not in sums}

    def arrays(self, sizes: Sizes, index: int) -> dict[str, Any]:
        """Return arrays of these sizes, and of their sums."""
        return super().arrays(with_sums(sizes, self._sums), index)

    def drawn(self, position: int, sizes: Sizes, index: int) -> Array:
        """Return the values of one input."""
        import numpy as np

        port, kind = self.ports[position]
        shape, generator = shape_of(port, sizes), np.random.default_rng((index, position))
        return np.asarray(_made(kind, port, shape, generator, index, self.longest(port, sizes)), port.dtype)

    def advice(self, label: str, size: int) -> str:
        """Say how to keep an axis from varying."""
        return (
            f"set `sizes: {{{label}: {size}}}`, or its range: `{label}: {{min: N, max: N, multiple_of: N}}`"
        )


def with_sums(sizes: Sizes, sums: Mapping[str, Sequence[str | int]]) -> Sizes:
    """Return the sizes with those that are sums of others."""
    return sizes | {
        label: sum(part if isinstance(part, int) else sizes[part] for part in parts)
        for label, parts in sums.items()
    }


def _made(
    kind: Kind, port: Port, shape: tuple[int, ...], generator: np.random.Generator, index: int, longest: int
) -> Any:
    import numpy as np

    if kind.what in ("mask", "padding") and len(shape) < 2:
        return np.ones(shape) if kind.what == "mask" else np.zeros(shape)
    if kind.what in ("mask", "padding", "lengths", "positions"):
        values = filled(kind.what, shape, port.dtype, batch=port.batch, longest=longest, index=index)
        return values % kind.high if kind.what == "positions" and kind.high else values
    if kind.what == "rate":
        return np.full(shape, 16000)
    if kind.what in ("ids", "pixels"):
        return generator.integers(0, kind.high, shape)
    if kind.what == "one":
        return np.ones(shape)
    return generator.standard_normal(shape) if shape else generator.uniform(0.5, 1.0)
