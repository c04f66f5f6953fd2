"""Find what an ONNX model takes: sizes of its axes, which of them are one, and reference cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, closest

from . import probing
from .axes import Axis, axis_of, batch_label, merged
from .bundles import Case, Port
from .compare import Model
from .declared import Input, linkings, named, sums
from .probing import Options, Probe, Sizes
from .values import Invented, Kind, kind_of, with_sums
from .variation import Variation, explore

if TYPE_CHECKING:
    import onnx

__all__ = ["Asked", "Explored", "explored", "taken"]

_FIXED_CASES = 4
"""Cases of a model whose sizes are all fixed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user says of axes: the only size of some, the range of others and sizes to begin with."""

    fixed: Mapping[str, int] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explored:
    """What was found: the inputs with their sizes, the cases, and how they came about.

    `named` says that the batch is called so in the file; `new` maps labels of the file to others or to the
    only size; the sizes of `guessed` were found by trying.
    """

    ports: list[Port]
    variation: Variation
    batch: str | None
    named: bool
    kinds: Mapping[str, Kind]
    guessed: Sequence[str] = ()
    new: Mapping[str, str | int] = field(default_factory=dict)


def explored(
    model: onnx.ModelProto, declared: Sequence[Input], run: Model, asked: Asked,
    samples: Mapping[str, Any] | None,
) -> Explored:  # fmt: skip
    """Run a model at two or more sizes of every axis that may vary.

    Axes with labels of their own share a size where the model needs it. Raises StageError with the line to
    write where no sizes are found.
    """
    refusals: list[StageError] = []
    for links, search in _searches(model, declared, run, asked, samples):
        try:
            return replace(search.found(), new={**links, **asked.fixed})
        except StageError as error:
            refusals.append(error)
    told = next((error for error in refusals if not isinstance(error, _NothingFits)), refusals[0])
    raise StageError(told.message, fix=told.fix) from told


def taken(model: onnx.ModelProto, declared: Sequence[Input], run: Model) -> list[Mapping[str, Any]]:
    """Return inputs that a model takes, at two sizes of each axis if it takes two. Raises StageError."""
    try:
        return [case.inputs for case in explored(model, declared, run, Asked(), None).variation.cases]
    except StageError as error:
        for _, search in _searches(model, declared, run, Asked(), None):
            try:
                return [search.arrays(search.first())]
            except StageError:
                continue
        raise error


def _searches(
    model: onnx.ModelProto, declared: Sequence[Input], run: Model, asked: Asked,
    samples: Mapping[str, Any] | None,
) -> Iterator[tuple[dict[str, str], _Search]]:  # fmt: skip
    """Yield a search for each way to read the labels, and which of them share a size then."""
    inputs, invented = named(declared)
    _check(asked, inputs)
    parts = sums(inputs)
    inputs = [given.relabelled(asked.fixed) for given in inputs]
    for links in linkings(inputs):
        new: dict[str, str | int] = {**links, **asked.fixed}
        added = {n: [new.get(str(part), part) for part in p] for n, p in parts.items() if n not in new}
        linked = [given.relabelled(links) for given in inputs]
        yield links, _Search(model, linked, run, _linked(asked, links), samples, added, invented)


class _NothingFits(StageError):
    """No sizes at all are taken."""


def _check(asked: Asked, inputs: Sequence[Input]) -> None:
    """Raise StageError for an axis that no input has, and for ranges without a size."""
    known = {label for given in inputs for label in given.labels.values()}
    for label in (*asked.fixed, *asked.axes):
        if label not in known:
            there = ", ".join(sorted(known)) or "only axes of fixed size"
            raise StageError(f"sizes: no input has an axis {label!r}; there are {there}",
                             fix=closest(label, known))  # fmt: skip
    for label, axis in asked.axes.items():
        example = asked.examples.get(label)
        try:
            axis.nearest(axis.min)
        except StageError as error:
            raise StageError(f"sizes: no size of {label!r} is {axis}", fix=error.fix) from error
        if example is not None and not axis.allows(example):
            raise StageError(f"sizes: the example {example} of {label!r} is not {axis}",
                             fix="choose an example within the limits")  # fmt: skip


def _linked(asked: Asked, links: Mapping[str, str]) -> Asked:
    """Return what was asked of labels under the labels that they share a size with."""
    said: dict[str, list[Axis]] = {}
    for label, axis in asked.axes.items():
        shared = links.get(label, label)
        said.setdefault(shared, []).append(replace(axis, label=shared))
    axes = {label: merged(label, given) for label, given in said.items()}
    return Asked({}, axes, {links.get(label, label): size for label, size in asked.examples.items()})


class _Search:
    """The search under one way to read the labels."""

    def __init__(
        self, model: onnx.ModelProto, inputs: Sequence[Input], run: Model, asked: Asked,
        samples: Mapping[str, Any] | None, sums: Mapping[str, Sequence[str | int]], invented: set[str],
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.run = model, inputs, run
        self.asked, self.samples, self.sums = asked, samples, sums
        self.batch, said = batch_label([given.labels for given in inputs])
        self.named = said and self.batch not in invented
        labels = sorted({label for given in inputs for label in given.labels.values()} - {*sums})
        self.axes = {label: asked.axes.get(label, Axis(label)) for label in labels}
        self.kinds = {i.name: kind_of(model, i.name, i.dtype, len(i.dims)) for i in inputs}

    def found(self) -> Explored:
        """Return the cases. Raises StageError where there are none of two sizes of each axis."""
        sizes = self.first() if self.samples is None else self._of_samples()
        source = self._source(sizes, self.samples)
        variation = explore(source, self.axes, self.run)
        if not self.axes:
            variation.cases += self._further()
            variation.sizes += [{}] * (len(variation.cases) - 1)
        known = {self.batch, *self.asked.examples} if self.samples is None else {*self.axes}
        guessed = [label for label in self.axes if label not in known]
        ports = [port for port, _ in source.ports]
        return Explored(ports, variation, self.batch, self.named, self.kinds, guessed)

    def first(self) -> Sizes:
        """Return sizes of all axes at which the model runs, with two samples. Raises StageError."""
        options = dict(probing.options_of(self.model, self.inputs, self.axes, self.asked.examples))
        fixed: Sizes = {}
        if self.batch is not None:
            options.pop(self.batch, None)
            fixed = {self.batch: self.asked.examples.get(self.batch, self.axes[self.batch].nearest(2))}
        accepts = probing.skeleton(self.model, self.inputs)
        probe = Probe(lambda sizes: accepts(with_sums(sizes, self.sums)), self.arrays, self.run)
        try:
            return probing.first_sizes(options, fixed, probe)
        except StageError as error:
            self._refuse_one_sample_only(options, probe, error)
            raise self._nothing_fits(options, error) from error

    def arrays(self, sizes: Sizes) -> Mapping[str, Any]:
        """Return made-up inputs of these sizes. Raises StageError where they are too large to try."""
        source = self._source(sizes, None)
        for port, _ in source.ports:
            if math.prod(port.shape) > probing.MOST_VALUES:
                raise StageError(f"the input {port.name!r} of shape {list(port.shape)} is too large to try")
        return source.arrays(sizes, 0)

    def _source(self, sizes: Sizes, samples: Mapping[str, Any] | None) -> Invented:
        sizes = with_sums(sizes, self.sums)
        ports = [
            Port(given.name, given.dtype, shape, given.labels, axis_of(given.labels, self.batch))
            for given in self.inputs
            for shape in [tuple(sizes[d] if isinstance(d, str) else d or 0 for d in given.dims)]
        ]
        return Invented(ports, self.kinds, self.batch, samples, sums=self.sums)

    def _of_samples(self) -> Sizes:
        """Return the sizes that the samples have; what doesn't fit is said where they are read."""
        assert self.samples is not None
        sizes: Sizes = {}
        for given in self.inputs:
            array = self.samples.get(given.name, self.samples.get("x"))
            shape = () if array is None else array.shape
            for axis, label in given.labels.items():
                sizes.setdefault(label, shape[axis] if axis < len(shape) else 1)
        return sizes

    def _refuse_one_sample_only(self, options: Options, probe: Probe, error: StageError) -> None:
        """Raise StageError where the model takes one sample, and two not."""
        if self.batch is None or self.batch in self.asked.examples:
            return
        try:
            probing.first_sizes(options, {self.batch: 1}, probe)
        except StageError:
            return
        raise StageError(f"the axis {self._place(self.batch)} works only with size 1: {error.message}",
                         fix=f"set `sizes: {{{self.batch}: 1}}`")  # fmt: skip

    def _place(self, label: str) -> str:
        return next(f"{label!r} (axis {axis} of {given.name!r})" for given in self.inputs
                    for axis, found in given.labels.items() if found == label)  # fmt: skip

    def _nothing_fits(self, options: Options, error: StageError) -> StageError:
        if not options:
            return _NothingFits(
                f"the model fails on values that were made for it: {error.message}",
                fix="give real ones as `samples`, an .npz with an array for each input",
            )
        places = ", ".join(self._place(label) for label in options)
        line = ", ".join(f"{label}: {{example: N}}" for label in options)
        return _NothingFits(
            f"no sizes were found for {places}, of those that were tried: {error.message}",
            fix=f"set `sizes: {{{line}}}` to ones that it takes, or give real `samples`",
        )

    def _further(self) -> list[Case]:
        """Return further cases of a model whose sizes are all fixed: other values, or other samples."""
        source = self._source({}, None)
        made = [source.arrays({}, index) for index in range(1, _FIXED_CASES)]
        if self.samples is not None:
            ports = [port for port, _ in source.ports]
            parts = [_part(self.samples, ports, index) for index in range(1, _FIXED_CASES)]
            made = [self._source({}, part).arrays({}, 0) for part in parts if part]
        return [Case(f"example{i}", arrays, self.run(arrays)) for i, arrays in enumerate(made, 1)]


def _part(samples: Mapping[str, Any], ports: Sequence[Port], index: int) -> dict[str, Any]:
    """Return the samples from one batch of fixed size on; nothing where there are no more."""
    shapes = {port.name: port.shape for port in ports}
    only = next(iter(shapes.values()))
    part = {}
    for name, array in samples.items():
        shape = shapes.get(name, only)
        size = shape[0] if shape else 0
        if not size or array.ndim != len(shape) or len(array) < (index + 1) * size:
            return {}
        part[name] = array[index * size :]
    return part
