"""Labels for the axes of an exported program, whose exporter has numbered them: `s77`, `8*s16`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from deploy_runner.sdk import StageError

from ...server.labels import names_samples
from .axes import Axis, merged
from .declared import Input, usual
from .exported import Declared

__all__ = ["labelled", "limited"]

_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_FREE = re.compile(r"(?:\d+\*)?[A-Za-z_]\w*")
Labels = dict[str, dict[int, str]]
"""Input → axis → label."""


def labelled(inputs: Sequence[Declared]) -> tuple[Labels, list[str]]:
    """Return the label of each axis that may vary, and the places of those that have to stay as they are.

    Axes of one symbol have one label: that of its first place, by `usual`. What stands first is taken for
    the samples of all inputs. What depends on another axis (`s3 + 1`) stays as it is, and that axis, too.
    """
    tied = _tied(inputs)
    names: dict[str, str] = {}
    labels: Labels = {given.name: {} for given in inputs}
    kept = []
    for given in inputs:
        for axis, symbol in enumerate(given.dims):
            if isinstance(symbol, int):
                continue
            if set(_SYMBOL.findall(symbol)) & tied:
                kept.append(f"axis {axis} of {given.name!r}")
                continue
            if symbol not in names:
                names[symbol] = _name(given, axis, set(names.values()))
            labels[given.name][axis] = names[symbol]
    return labels, kept


def _tied(inputs: Sequence[Declared]) -> set[str]:
    """Return the symbols that stand in more than one form, or in one that is more than a multiple."""
    forms: dict[str, set[str]] = defaultdict(set)
    for given in inputs:
        for dim in given.dims:
            for symbol in _SYMBOL.findall(dim) if isinstance(dim, str) else ():
                forms[symbol].add(str(dim))
    return {s for s, found in forms.items() if len(found) > 1 or not all(map(_FREE.fullmatch, found))}


def _name(given: Declared, axis: int, taken: set[str]) -> str:
    label = usual(Input(given.name, given.dtype, given.dims), axis, "batch")
    own = f"{given.name}_{axis}"
    return label if label not in taken or names_samples(label) else own


def limited(
    inputs: Sequence[Declared], labels: Labels, ranges: Mapping[str, Axis], asked: Mapping[str, Axis]
) -> dict[str, Axis]:
    """Return label → the sizes that the program takes and the user allows.

    Raises StageError where no size is left, and for an axis that the program has fixed.
    """
    said: dict[str, list[Axis]] = {label: [axis] for label, axis in asked.items()}
    for given in inputs:
        for place, label in labels[given.name].items():
            dim = given.dims[place]
            if isinstance(dim, int):
                raise StageError(
                    f"dynamic: the program was exported with axis {place} of {given.name!r} fixed to {dim}",
                    fix="remove it, or export the program again",
                )
            said.setdefault(label, []).append(ranges.get(dim, Axis(label)))
    return {label: merged(label, given) for label, given in sorted(said.items())}
