"""Find what an ONNX model takes: sizes of its axes, which of them are one, and reference cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, closest

from . import probing
from .axes import Axis, axis_of, batch_label, merged
from .bundles import Case, Port
from .compare import Model
from .declared import Input, linkings, named
from .probing import Probe, Sizes
from .values import Invented, Kind, kind_of
from .variation import Variation, explore

if TYPE_CHECKING:
    import onnx

__all__ = ["Asked", "Explored", "explored"]

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

    `named` says that the batch is called so in the file, `new` maps labels of the file to others or to the
    only size, `invented` are labels that the file doesn't have.
    """

    ports: list[Port]
    variation: Variation
    batch: str | None
    named: bool
    kinds: Mapping[str, Kind]
    new: Mapping[str, str | int]
    invented: set[str]


def explored(
    model: onnx.ModelProto, declared: Sequence[Input], run: Model, asked: Asked,
    samples: Mapping[str, Any] | None,
) -> Explored:  # fmt: skip
    """Run a model at two or more sizes of every axis that may vary.

    Axes with labels of their own share a size where the model wants it. Raises StageError with the line to
    write where no sizes are found.
    """
    inputs, invented = named(declared)
    _check(asked, inputs)
    inputs = [given.relabelled(asked.fixed) for given in inputs]
    errors: list[StageError] = []
    for links in linkings(inputs):
        try:
            linked = [given.relabelled(links) for given in inputs]
            found = _Search(model, linked, run, _linked(asked, links), samples, invented).found()
        except StageError as error:
            errors.append(error)
        else:
            return replace(found, new={**links, **asked.fixed}, invented=invented)
    raise next((error for error in errors if not isinstance(error, _NothingFits)), errors[0])


class _NothingFits(StageError):
    """No sizes at all are taken."""


def _check(asked: Asked, inputs: Sequence[Input]) -> None:
    """Raise StageError for an axis that no input has."""
    known = {label for given in inputs for label in given.labels.values()}
    for label in (*asked.fixed, *asked.axes):
        if label not in known:
            there = ", ".join(sorted(known)) or "only axes of fixed size"
            raise StageError(f"sizes: no input has an axis {label!r}; there are {there}",
                             fix=closest(label, known))  # fmt: skip


def _linked(asked: Asked, links: Mapping[str, str]) -> Asked:
    """Return what was asked of labels under the labels that they share a size with."""
    said: dict[str, list[Axis]] = {}
    for label, axis in asked.axes.items():
        shared = links.get(label, label)
        said.setdefault(shared, []).append(replace(axis, label=shared))
    axes = {label: merged(label, given) for label, given in said.items()}
    return Asked({}, axes, {links.get(label, label): size for label, size in asked.examples.items()})


@dataclass(frozen=True)
class _Search:
    """The search under one way to link the axes."""

    model: onnx.ModelProto
    inputs: Sequence[Input]
    run: Model
    asked: Asked
    samples: Mapping[str, Any] | None
    invented: set[str]

    def found(self) -> Explored:
        """Return the cases."""
        batch, said = batch_label([given.labels for given in self.inputs])
        labels = sorted({label for given in self.inputs for label in given.labels.values()})
        axes = {label: self.asked.axes.get(label, Axis(label)) for label in labels}
        kinds = {i.name: kind_of(self.model, i.name, i.dtype, len(i.dims)) for i in self.inputs}
        sizes = self._of_samples() if self.samples else self._first(axes, batch, kinds)
        source = Invented(self._ports(sizes, batch), kinds, batch, self.samples)
        variation = explore(source, axes, self.run)
        if not axes:
            variation.cases += self._further(kinds)
            variation.sizes += [{}] * (len(variation.cases) - 1)
        named_ = said and batch not in self.invented
        return Explored([port for port, _ in source.ports], variation, batch, named_, kinds, {}, set())

    def _ports(self, sizes: Sizes, batch: str | None) -> list[Port]:
        return [
            Port(given.name, given.dtype, shape, given.labels, axis_of(given.labels, batch))
            for given in self.inputs
            for shape in [tuple(sizes[d] if isinstance(d, str) else d or 0 for d in given.dims)]
        ]

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

    def _first(self, axes: Mapping[str, Axis], batch: str | None, kinds: Mapping[str, Kind]) -> Sizes:
        """Return sizes of all axes at which the model runs, with two samples."""
        options = dict(probing.options_of(self.model, self.inputs, axes, self.asked.examples))
        fixed: Sizes = {}
        if batch is not None:
            options.pop(batch, None)
            fixed = {batch: self.asked.examples.get(batch, axes[batch].nearest(2))}
        probe = Probe(probing.skeleton(self.model, self.inputs), self._arrays(batch, kinds), self.run)
        try:
            return probing.first_sizes(options, fixed, probe)
        except StageError as error:
            self._refuse_one_sample_only(options, batch, probe, error)
            raise self._nothing_fits(options, error) from error

    def _arrays(self, batch: str | None, kinds: Mapping[str, Kind]) -> Any:
        def made(sizes: Sizes) -> Mapping[str, Any]:
            return Invented(self._ports(sizes, batch), kinds, batch, None).arrays(sizes, 0)

        return made

    def _refuse_one_sample_only(
        self, options: probing.Options, batch: str | None, probe: Probe, error: StageError
    ) -> None:
        """Raise StageError where the model takes one sample, and two not."""
        if batch is None or batch in self.asked.examples:
            return
        try:
            probing.first_sizes(options, {batch: 1}, probe)
        except StageError:
            return
        raise StageError(f"the axis {self._place(batch)} works only with size 1: {error.message}",
                         fix=f"set `sizes: {{{batch}: 1}}`")  # fmt: skip

    def _place(self, label: str) -> str:
        return next(f"{label!r} (axis {axis} of {given.name!r})" for given in self.inputs
                    for axis, found in given.labels.items() if found == label)  # fmt: skip

    def _nothing_fits(self, options: probing.Options, error: StageError) -> StageError:
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

    def _further(self, kinds: Mapping[str, Kind]) -> list[Case]:
        """Return further cases of a model whose sizes are all fixed: other values, or other samples."""
        ports = self._ports({}, None)
        if self.samples is None:
            source = Invented(ports, kinds, None, None)
            made = [source.arrays({}, index) for index in range(1, _FIXED_CASES)]
        else:
            parts = [_part(self.samples, ports, index) for index in range(1, _FIXED_CASES)]
            made = [Invented(ports, kinds, None, part).arrays({}, 0) for part in parts if part]
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
