"""Try a factory on weights: which of its arguments fit them, and what input the model takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from ..model import bundles, loading, state_dicts
from . import first_inputs

if TYPE_CHECKING:
    from torch import nn

    from ..model.state_dicts import StateDict

Shapes = Mapping[str, tuple[int, ...]]
Build = Callable[..., Any]

CLASSES = frozenset((21, 91, 400, 1000, 11821, 21841, 21843))
"""The default `num_classes` of libraries: of COCO for detection and segmentation, of Kinetics, of ImageNet
and its larger versions."""
_MOST_ROUNDS = 6
_MOST_PARTS = 3
_WHOLE = frozenset(("args", "cfg", "conf", "config", "hparams", "model_config", "opt", "options", "params"))
"""Parameters that take the whole of a configuration."""


def builder(factory: Any, name: str) -> Build:
    """Return a function that builds the module of keyword arguments, with the signature of the factory.

    It raises StageError where the factory fails.
    """

    def build(**kwargs: Any) -> nn.Module:
        return bundles.build_module(factory, kwargs, name)

    build.__signature__ = _signature(factory)  # type: ignore[attr-defined]
    return build


def fit(
    build: Build,
    weights: StateDict,
    arguments: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    shape: list[int] | None,
) -> dict[str, Any]:
    """Return the arguments of the factory that fit the weights, and the example inputs of its model.

    `arguments` are what the checkpoint says, `kwargs` what the user does. Raises StageError where the
    weights don't fit; where no input is found, `example` is None.
    """
    named = _signature(build).parameters
    given = {name: value for name, value in arguments.items() if name in named} | dict(kwargs)
    whole = [n for n, p in named.items() if n in _WHOLE and p.default is p.empty and n not in given]
    given |= {name: dict(arguments) for name in whole if arguments}
    tensors = {name: tuple(getattr(t, "shape", ())) for name, t in weights.items()}
    values = {n: given.get(n, p.default) for n, p in named.items() if n not in kwargs}
    sizes: dict[str, Set[int]] = {n: {v} for n, v in values.items() if type(v) is int}
    if any(p.kind == p.VAR_KEYWORD for p in named.values()) and "num_classes" not in given:
        sizes["num_classes"] = CLASSES
    chosen = refined(build, given, tensors, sizes)
    module, prefix = _loaded(build, chosen, weights)
    found = first_inputs.found(bundles.frozen(module), shape)
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "strip_prefix": prefix,
        # What the factory would take by itself is not worth a line of the user's.
        "kwargs": {n: v for n, v in chosen.items() if n in kwargs or not _is_default(named, n, v)},
        **(found._asdict() if found else {"example": None}),
    }


def _loaded(build: Build, kwargs: Mapping[str, Any], weights: StateDict) -> tuple[nn.Module, str | None]:
    """Return the module with the weights, and the prefix under which they are where others lie beside them.

    Raises StageError where they don't fit, or under several prefixes: which to take is the user's.
    """
    module = build(**kwargs)
    known = set(module.state_dict())
    try:
        loading.load(module, weights)
    except StageError:
        below: dict[str, set[str]] = {}
        for name in weights:
            parts = name.split(".")
            for at in range(1, min(len(parts), _MOST_PARTS + 1)):
                below.setdefault(".".join(parts[:at]) + ".", set()).add(".".join(parts[at:]))
        fitting = [prefix for prefix, names in below.items() if names == known]
        if len(fitting) != 1:
            raise
        module = build(**kwargs)
        loading.load(module, state_dicts.strip_wrappers(weights, fitting[0]))
        return module, "".join(weights.stripped) + fitting[0]
    return module, None


def refined(
    build: Build, kwargs: Mapping[str, Any], tensors: Shapes, sizes: Mapping[str, Set[int]]
) -> dict[str, Any]:
    """Return the arguments, with sizes changed so that the module's weights have the tensors' shapes.

    `sizes` are the arguments that may be changed, with the values that they may have now. One is changed
    where every size of the module's weights that is this value is one other number in the file; where
    there is none, the sizes that are multiples of it count, as of a head with so many classes an anchor.
    """
    given, may_be = dict(kwargs), dict(sizes)
    for _ in range(_MOST_ROUNDS):
        differing = _differing(shapes_of(build(**given)), tensors)
        exact = {n: {theirs for own, theirs in differing if own in v} for n, v in may_be.items()}
        changes = _sure(exact) or _sure({n: set(_parts(differing, v)) for n, v in may_be.items()})
        if not changes:
            break
        given |= changes
        may_be |= {name: {value} for name, value in changes.items()}
    return given


def _sure(wanted: Mapping[str, Set[int]]) -> dict[str, int]:
    return {name: next(iter(values)) for name, values in wanted.items() if len(values) == 1}


def _parts(differing: Set[tuple[int, int]], values: Set[int]) -> Iterator[int]:
    """Yield what one of the values would be, where sizes that differ are multiples of it."""
    for value in values:
        times = {(own // value, theirs) for own, theirs in differing if value > 1 and own % value == 0}
        yield from (theirs // count for count, theirs in times if theirs % count == 0)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of a module's weights."""
    return {name: tuple(t.shape) for name, t in module.state_dict().items() if hasattr(t, "shape")}


def _differing(own: Shapes, tensors: Shapes) -> set[tuple[int, int]]:
    """Return the pairs of sizes, the module's and the file's, by which weights differ."""
    pairs = set()
    for name, shape in own.items():
        inside = (given for other, given in tensors.items() if other.endswith(f".{name}"))
        given = tensors.get(name) or next(inside, ())
        if len(given) == len(shape):
            pairs |= {(a, b) for a, b in zip(shape, given, strict=True) if a != b}
    return pairs


def _is_default(named: Mapping[str, inspect.Parameter], name: str, value: Any) -> bool:
    return name in named and type(named[name].default) is type(value) and named[name].default == value


def _signature(factory: Any) -> inspect.Signature:
    try:
        return inspect.signature(factory)
    except (TypeError, ValueError):
        return inspect.Signature()
