"""Inputs that nobody calibrated on: varied from samples, or drawn from what a graph declares."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from .bundles import Case
from .compare import Model

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

FRESH = 32
_READ = 512


def kept(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return at most FRESH samples, spread evenly over the first 512."""
    read = list(itertools.islice(samples, _READ))
    step = max(1, -(-len(read) // FRESH))
    return read[::step]


def from_samples(samples: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield inputs made of two samples each; of samples without any difference, noise.

    Floats are blended, as far from their mean as the samples are; none leaves the range that was seen.
    Other types are cut and joined. What all samples share, such as a mask, is kept.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    alike = len(samples) < 2 or all(_same(samples[0], other) for other in samples[1:])
    for index, sample in enumerate(samples):
        other = samples[(index + 1 + len(samples) // 2) % len(samples)]
        if alike:
            yield {name: _noisy(array, generator) for name, array in sample.items()}
        else:
            share = generator.uniform(0.6, 0.9)
            yield {name: array if np.array_equal(array, other[name]) else _between(array, other[name], share)
                   for name, array in sample.items()}  # fmt: skip


def from_cases(cases: Iterable[Case]) -> Iterator[dict[str, Any]]:
    """Yield inputs of the cases' sizes, each made of two of its samples; what they share is kept.

    Where nothing is a sample, rows are taken for some.
    """
    import numpy as np

    generator = np.random.default_rng(1)
    for case in cases:
        share = generator.uniform(0.6, 0.9)
        axes = {name: case.batch.get(f"in/{name}", 0) for name in case.inputs}
        if all(axis is None for axis in axes.values()):
            axes = dict.fromkeys(axes, 0)
        yield {name: a if axes[name] is None or not a.ndim
               else _between(a, np.roll(a, 1, axis=axes[name]), share, generator)
               for name, a in case.inputs.items()}  # fmt: skip


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    import numpy as np

    return all(np.array_equal(array, other[name]) for name, array in one.items())


def _noisy(array: Array, generator: np.random.Generator) -> Array:
    import numpy as np

    if array.dtype.kind != "f":
        return array
    scale = float(np.abs(array).max(initial=0)) or 1.0
    return np.asarray(generator.standard_normal(array.shape) * scale, array.dtype)


def _between(one: Array, other: Array, share: float, generator: np.random.Generator | None = None) -> Array:
    import numpy as np

    if one.shape != other.shape or (generator is not None and np.array_equal(one, other)):
        other = np.zeros_like(one) if one.dtype.kind == "f" else one
    if one.dtype.kind == "f":
        mean = (one.mean() + other.mean()) / 2 if one.size else 0.0
        blend = mean + share * (one - mean) + (1 - share**2) ** 0.5 * (other - mean)
        both = np.stack([one, other])
        return np.asarray(np.clip(blend, both.min(initial=0), both.max(initial=0)), one.dtype)
    if not one.ndim:
        return one
    cut = int(one.shape[-1] * share)
    return np.concatenate([one[..., :cut], other[..., cut:]], axis=-1)


def from_graph(model: onnx.ModelProto, run: Model) -> Sequence[Mapping[str, Any]]:
    """Return inputs of an ONNX model by what its graph declares, at two sizes of each axis if it takes two.

    Raises StageError where none are found.
    """
    from .declared import inputs_of
    from .exploring import taken

    try:
        return taken(model, inputs_of(model), run)
    except StageError as error:
        raise StageError(
            f"there are no inputs to evaluate the result on: {error.message}",
            fix="set `reference` to the bundle of model.prepare or model.onnx",
        ) from error
