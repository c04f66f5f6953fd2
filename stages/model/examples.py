"""Make the reference inputs of a model: real samples where there are some, else seeded noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Tag
from typing_extensions import TypeAliasType

from deploy_runner.sdk import Field, StageError, StageParams, closest

from .axes import Axis, axis_of, batch_label, merged, rows
from .bundles import Port, arguments_of
from .calls import arguments, expression, in_order
from .filling import Fill, called, filled
from .nesting import Path, flat_names, leaves
from .structures import arranged, hints_of

if TYPE_CHECKING:
    from torch import nn

DType = Literal["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"]
_LABEL = r"^\w[^/{}$]*$"


class Example(StageParams):
    """One example input."""

    shape: list[int] = Field(description="its shape, e.g. [1, 3, 224, 224]; [] for a single number")
    dtype: DType = Field("float32", description="its element type")
    low: int = Field(0, description="the smallest of the integers that are drawn")
    high: int | None = Field(
        None,
        ge=1,
        description="integers are drawn from low to high - 1 (default: the rows of the table that they look "
        "up, else 2)",
    )
    fill: Fill | None = Field(
        None,
        description="what it is made of: random values; a mask (ones, then zeros on the right), a mask of "
        "padding (zeros, then ones), one with gaps, the lengths of the samples, or positions (0, 1, 2, …); "
        "no row is empty (default: by its name)",
    )


def _form(given: Any) -> str:
    """Say what is written: a list, a mapping that has examples in it, or one example, right or wrong."""
    if isinstance(given, list):
        return "list"
    return "mapping" if isinstance(given, Mapping) and any(map(_is_nested, given.values())) else "one"


def _is_nested(value: Any) -> bool:
    return isinstance(value, (Mapping, Example)) or (isinstance(value, list) and any(map(_is_nested, value)))


def _top(given: Any) -> str:
    """Say the same of `example` itself, which is no list; a forward() without arguments has none."""
    return "mapping" if given == {} else "one" if isinstance(given, list) else _form(given)


if TYPE_CHECKING:
    Examples = Example | list["Examples"] | dict[str, "Examples"]
    """One example, or a list or mapping of them."""
    Given = Example | dict[str, Examples]
    """One example, or those of forward()'s arguments, nested as they are."""
else:
    _One = Annotated[Example, Tag("one")]
    _Several = Annotated[list["Examples"], Tag("list"), Field(min_length=1)]
    _ByName = Annotated[dict[str, "Examples"], Tag("mapping")]
    _said = Field(description="One example, or a list or mapping of them.")
    Examples = TypeAliasType("Examples", Annotated[_One | _Several | _ByName, Discriminator(_form), _said])
    Given = Annotated[_One | Annotated[dict[str, Examples], Tag("mapping")], Discriminator(_top)]


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
    module: nn.Module, example: Example | Mapping[str, Any], dynamic: Dynamic | None
) -> tuple[list[tuple[Port, Example]], str | None, bool]:
    """Return the inputs in forward()'s order, the batch's label, and whether it is called so.

    An argument that is a mapping or a list of examples has an input for each.

    Raises StageError for a name that forward() doesn't have.
    """
    if isinstance(example, Example):
        example = {next(iter(arguments(module)), "input"): example}
    hints = hints_of(module.forward)
    ordered = in_order(module, list(example))
    tree = {name: arranged(example[name], hints.get(name), (name,)) for name in ordered}
    paths = dict(leaves(tree))
    names = dict(zip(flat_names(list(paths)), paths, strict=True))
    for name, path in names.items():
        if any(size < 0 for size in paths[path].shape):
            raise StageError(f"the example {name!r} has the shape {paths[path].shape}: a size is negative",
                             fix="use a real size, and list the axes that vary in `dynamic`")  # fmt: skip
    for name in dynamic or {}:
        if name not in names:
            raise StageError(f"dynamic: there is no input {name!r}, only {', '.join(names)}")
    ports = [(port_of(name, path, paths[path], dynamic), paths[path]) for name, path in names.items()]
    expression(module, arguments_of(port for port, _ in ports))
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


def port_of(name: str, path: Path, example: Example, dynamic: Dynamic | None) -> Port:
    """Return an input with the axes that vary. Raises StageError for one that it doesn't have."""
    if dynamic is None:
        axes = {0: "batch"} if example.shape else {}
    else:
        axes = {
            _axis(name, axis, example): given.name if isinstance(given, DynamicAxis) else given
            for axis, given in dynamic.get(name, {}).items()
        }
    return Port(name, example.dtype, tuple(example.shape), axes, path=path if len(path) > 1 else ())


def _axis(name: str, axis: str, example: Example) -> int:
    if not axis.isdecimal() or int(axis) >= len(example.shape):
        raise StageError(f"dynamic: the input {name!r} has no axis {axis}, its shape is {example.shape}")
    return int(axis)


def noise(port: Port, example: Example, shape: Sequence[int], seed: tuple[int, int], longest: int) -> Any:
    """Return seeded values of an example's type.

    What is called a mask, lengths or positions has realistic ones, unless `fill` says otherwise. `longest`
    is the largest value of lengths.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    fill = example.fill or fill_of(port.name, example)
    if fill != "random":
        return filled(fill, shape, example.dtype, batch=port.batch, longest=longest, index=seed[0])
    if example.dtype.startswith("float"):
        return generator.standard_normal(shape).astype(example.dtype)
    high = example.high or 2
    return generator.integers(min(example.low, high - 1), high, shape).astype(example.dtype)


def fill_of(name: str, example: Example) -> Fill:
    """Return what an input of this name and type holds; with a range of its own it is drawn from that."""
    fill = called(name, example.dtype, len(example.shape))
    drawn = fill != "lengths" and (example.low, example.high or 2) != (0, 2)
    return "random" if drawn else fill


def chosen_samples(ports: Sequence[tuple[Port, Any]], samples: Mapping[str, Any]) -> dict[str, Any]:
    """Return the array of each input, `x` for the only one, as many samples of each as all have.

    Raises StageError for one that is missing, or has sizes that the example doesn't have.
    """
    arrays: dict[str, Any] = {}
    for port, _ in ports:
        name = port.name if port.name in samples else "x" if len(ports) == 1 else port.name
        if name not in samples:
            raise StageError(
                f"the samples have no array {port.name!r}, only {', '.join(samples)}",
                fix=closest(port.name, samples) or "name each array after its input",
            )
        arrays[port.name] = _sample_of(port, name, samples[name].astype(port.dtype, copy=False))
    counts = [arrays[p.name].shape[p.batch] for p, _ in ports if p.batch is not None]
    if counts and min(counts) < 2:
        raise StageError("there is only one sample: batches can't be compared",
                         fix="use at least two samples")  # fmt: skip
    return {p.name: rows(arrays[p.name], p.batch, slice(min(counts, default=0))) for p, _ in ports}


def _sample_of(port: Port, name: str, array: Any) -> Any:
    fixed = [axis for axis in range(len(port.shape)) if axis not in port.dynamic]
    if array.ndim == len(port.shape) and array.ndim and 0 in fixed and array.shape[0] > port.shape[0]:
        array = array[: port.shape[0]]  # A batch of one size.
    if array.ndim != len(port.shape) or any(array.shape[axis] != port.shape[axis] for axis in fixed):
        raise StageError(f"the samples {name!r} have the shape {array.shape[1:]} each, "
                         f"the example has {port.shape[1:]}")  # fmt: skip
    return array
