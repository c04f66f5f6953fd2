"""Choose the sizes at which a model is compared: of each dynamic axis two or more, found by running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy_runner.sdk import StageError

from .axes import Axis, axis_of, candidates, follow, learned
from .bundles import Case, Port, tiled
from .filling import longest_sample

Sizes = dict[str, int]
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Runs the eager module: arrays by input name → arrays by output name."""

_SAMPLES = 64
_MOST_VALUES = 1 << 22
_MOST_TIMES = 64
"""A case has at most so many input values, and so many times those of the first: `max` may be huge."""


class Source:
    """Reference inputs of any sizes: seeded noise, or real samples that are cut and tiled.

    The noise hangs on the shapes alone: a gate that holds must not break because something else of
    the pipeline has changed.
    """

    def __init__(
        self, ports: Sequence[tuple[Port, Any]], batch: str | None, samples: Mapping[str, Any] | None
    ) -> None:
        from .examples import chosen_samples

        self.ports, self.batch = ports, batch
        self._samples = None if samples is None else chosen_samples(ports, samples)
        shapes = {p.name: p.shape if self._samples is None else self._samples[p.name].shape for p, _ in ports}
        self.given: Sizes = {}
        for port, _ in ports:
            for axis, label in port.dynamic.items():
                size = self.given.setdefault(label, shapes[port.name][axis])
                if label != batch and size != shapes[port.name][axis]:
                    said = f"{port.name!r} has {label} {shapes[port.name][axis]}, another input has {size}"
                    raise StageError(
                        said, fix="use equal sizes for axes with the same name, or different names"
                    )
                self.given[label] = min(size, shapes[port.name][axis])

    def first(self, axes: Mapping[str, Axis], *, few: bool = True) -> Sizes:
        """Return the first sizes, of each two or more: exporters take a one for a constant.

        A `few` samples do for a batch, unless the model needs as many as were given.
        """
        sizes = {}
        for label, size in self.given.items():
            if few and label == self.batch:
                size = 2 if self._samples is None else min(_SAMPLES, size)
            elif size > 1 and not axes[label].allows(size):
                raise StageError(f"dynamic: {label} is {size}, but must be {axes[label]}",
                                 fix="use an example with such a size")  # fmt: skip
            sizes[label] = axes[label].nearest(max(2, size))
        return sizes

    def arrays(self, sizes: Sizes, index: int) -> dict[str, Any]:
        """Return arrays of these sizes; another `index` gives other values.

        No two inputs have the same values: a conversion that exchanges them must be seen.
        """
        if self._samples is None:
            return {
                port.name: self.drawn(position, sizes, index) for position, (port, _) in enumerate(self.ports)
            }
        return {p.name: tiled(self._samples[p.name], p, sizes, shift=index) for p, _ in self.ports}

    def drawn(self, position: int, sizes: Sizes, index: int) -> Any:
        """Return made-up values of one input."""
        from .examples import noise

        port, example = self.ports[position]
        return noise(port, example, shape_of(port, sizes), (index, position), self.longest(port, sizes))

    def longest(self, port: Port, sizes: Sizes) -> int:
        """Return the largest length that an input may hold."""
        others = [other for other, _ in self.ports]
        return longest_sample(port, others, lambda other: shape_of(other, sizes), self.batch)

    def advice(self, label: str, size: int) -> str:
        """Say what to do about an axis that has one size only."""
        return f"remove it from `dynamic`, or declare {{name: {label}, multiple_of: N, min: N, max: N}}"

    def name(self, sizes: Sizes) -> str:
        """Return a case's name, of its sizes."""
        if self._samples is None:
            return "-".join(f"{label}{size}" for label, size in sorted(sizes.items())) or "example"
        rest = [f"{label}{n}" for label, n in sorted(sizes.items()) if label != self.batch]
        return "-".join([f"samples{sizes.get(self.batch or '', '')}", *rest])


def shape_of(port: Port, sizes: Sizes) -> tuple[int, ...]:
    """Return the shape of an input at these sizes."""
    return tuple(sizes.get(port.dynamic.get(i, ""), n) for i, n in enumerate(port.shape))


@dataclass(slots=True)
class Variation:
    """The cases, what is known of the axes after running them, and which sizes were refused."""

    cases: list[Case]
    sizes: list[Sizes]
    axes: dict[str, Axis]
    refused: dict[str, list[int]] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    """Inputs of the first case's sizes with other values."""

    def apart_from(self, batch: str | None) -> list[tuple[tuple[str, int], ...]]:
        """Return the sizes of each case without that of the batch."""
        return [tuple((n, size) for n, size in sizes.items() if n != batch) for sizes in self.sizes]

    def __str__(self) -> str:
        """Say which sizes of each axis were run, and what follows from those that were refused."""
        parts = []
        for label, axis in self.axes.items():
            ran = ", ".join(str(n) for n in dict.fromkeys(sizes[label] for sizes in self.sizes))
            refused = self.refused.get(label)
            said = f"; failed for {', '.join(map(str, refused))}: treated as {axis}" if refused else ""
            parts.append(f"{label} {ran}{said}")
        return "; ".join(parts) or "no axis is dynamic"


class _Explorer:
    """Runs the model at sizes beside the first ones."""

    def __init__(self, source: Source, run: Run, variation: Variation) -> None:
        self.source, self.run, self.found = source, run, variation
        self.error: StageError | None = None

    @property
    def first(self) -> Sizes:
        return self.found.sizes[0]

    def try_sizes(self, changed: Sizes) -> bool:
        """Run a case; keep it where the model takes it."""
        sizes = self.first | changed
        if sizes in self.found.sizes:
            return True
        arrays = self.source.arrays(sizes, len(self.found.cases))
        try:
            outputs = self.run(arrays)
        except StageError as error:
            self.error = error
            return False
        self.found.cases.append(Case(self.source.name(sizes), arrays, outputs))
        self.found.sizes.append(sizes)
        return True

    def search(self, label: str, wanted: int) -> None:
        """Find so many other sizes of one axis. Raises StageError where there is none."""
        axis = self.found.axes[label]
        ran: list[int] = []
        for size in candidates(axis, self.first[label], batch=label == self.source.batch):
            if len(ran) == wanted:
                break
            if self.try_sizes({label: size}):
                ran.append(size)
            else:
                self.found.refused.setdefault(label, []).append(size)
        if not ran:
            raise self._only_one_size(label)
        if label != self.source.batch:
            self.found.axes[label] = learned(axis, self.first[label], ran, self.found.refused.get(label, []))

    def _only_one_size(self, label: str) -> StageError:
        tried = ", ".join(map(str, self.found.refused.get(label, []))) or "none"
        where = next(
            f"axis {axis} of {port.name!r}"
            for port, _ in self.source.ports
            for axis, found in port.dynamic.items()
            if found == label
        )
        said = f"the dynamic axis {label!r} ({where}) works only with size {self.first[label]}; also tried: "
        why = f" ({self.error})" if self.error else ""
        return StageError(f"{said}{tried}{why}", fix=self.source.advice(label, self.first[label]))


def explore(source: Source, axes: Mapping[str, Axis], run: Run) -> Variation:
    """Run the model at two or more sizes of each axis, and at the ends that were declared.

    At first all axes vary together. Where the model refuses that, each is varied alone, for sizes that it
    takes. Raises StageError where an axis has no second size, or an end that was declared is refused.
    """
    first, case = _first(source, axes, run)
    found = Variation([case], [first], dict(axes))
    explorer = _Explorer(source, run, found)
    together = list(_together(source, axes, first))
    taken = [explorer.try_sizes(sizes) for sizes in together]
    if not all(taken):
        for label in axes:
            explorer.search(label, len(together))
    for label, size in _ends(source, axes, first):
        smallest = _smallest_batch(source, axes)
        if not explorer.try_sizes({**smallest, label: size}):
            raise StageError(f"the model fails with {label} {size}, which `dynamic` allows: {explorer.error}",
                             fix=f"set the `min` and `max` of {label!r}") from explorer.error  # fmt: skip
    for label in axes:
        if len({sizes[label] for sizes in found.sizes}) < 2:
            explorer.search(label, 1)
    found.others = source.arrays(first, len(found.cases))
    return found


def _first(source: Source, axes: Mapping[str, Axis], run: Run) -> tuple[Sizes, Case]:
    """Run the first case: with few samples, else with all that were given (nodes that edges number)."""

    def case(sizes: Sizes) -> tuple[Sizes, Case]:
        arrays = source.arrays(sizes, 0)
        return sizes, Case(source.name(sizes), arrays, run(arrays))

    few, given = source.first(axes), source.first(axes, few=False)
    try:
        return case(few)
    except StageError:
        if given == few:
            raise
    return case(given)


def _together(source: Source, axes: Mapping[str, Axis], first: Sizes) -> Iterator[Sizes]:
    """Yield the sizes of two more cases (one of samples, where only the batch varies).

    Axes other than the batch take theirs in turns, so that none follows another.
    """
    options = {
        label: [*candidates(axis, first[label], batch=label == source.batch)][:2]
        for label, axis in axes.items()
    }
    count = 1 if source._samples is not None and list(axes) == [source.batch] else 2
    turned = [label for label in sorted(axes) if label != source.batch][1::2]
    for index in range(count if axes else 0):
        yield {
            label: sizes[(count - 1 - index if label in turned else index) % len(sizes)]
            for label, sizes in options.items()
            if sizes
        }


def _ends(source: Source, axes: Mapping[str, Axis], first: Sizes) -> Iterator[tuple[str, int]]:
    """Yield label and size of each end that was declared; of a large `max` what can be afforded."""
    start = _values(source, first)
    for label, axis in axes.items():
        if axis.min > 1:
            yield label, axis.nearest(axis.min)
        if axis.max is None:
            continue
        smallest = _smallest_batch(source, axes)
        size = max(n for n in range(axis.max, axis.max - axis.multiple_of, -1) if axis.allows(n))
        most = min(_MOST_VALUES, _MOST_TIMES * start)
        while size > first[label] and _values(source, {**first, **smallest, label: size}) > most:
            size = axis.nearest(max(first[label], size // 2))
        yield label, size


def _smallest_batch(source: Source, axes: Mapping[str, Axis]) -> Sizes:
    batch = source.batch
    return {batch: axes[batch].nearest(max(2, axes[batch].min))} if batch in axes and batch else {}


def _values(source: Source, sizes: Sizes) -> int:
    return sum(math.prod(shape_of(port, sizes)) for port, _ in source.ports)


def output_port(name: str, dtype: str, found: Variation, batch: str | None) -> Port:
    """Return an output; an axis is dynamic where its size isn't the same in every case.

    It has the name of what it follows: a label, or what is made of one (`2*height`, `length+1`).
    """
    arrays = [case.outputs[name] for case in found.cases]
    order = sorted(found.axes, key=lambda label: (label != batch, label))
    labels = {label: [sizes[label] for sizes in found.sizes] for label in order}
    dynamic: dict[int, str] = {}
    for axis in range(arrays[0].ndim):
        sizes = [array.shape[axis] for array in arrays]
        if len(set(sizes)) > 1:
            dynamic[axis] = follow(sizes, labels) or f"{name}_{axis}"
    return Port(name, dtype, tuple(arrays[0].shape), dynamic, axis_of(dynamic, batch))
