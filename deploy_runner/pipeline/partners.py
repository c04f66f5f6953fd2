"""Which instances of a stage an instance of another stage takes from: found by an index of their values."""

from __future__ import annotations

from collections.abc import Mapping

from ..types import Scalar

__all__ = ["Partners", "Values", "tagged"]

Values = dict[str, Scalar]
"""The values of one instance of a matrix, by name."""

_Tagged = tuple[tuple[bool, Scalar], ...]


def tagged(values: Mapping[str, Scalar], names: tuple[str, ...]) -> _Tagged:
    """Return the values of these names as something that equals only the same values: `true` is not 1."""
    return tuple((type(values[name]) is bool, values[name]) for name in names)


class Partners:
    """The instances of one stage, to be found by the values that they share with an instance of another."""

    def __init__(self, instances: Mapping[str, Values]) -> None:
        self._position = {id_: index for index, id_ in enumerate(instances)}
        self._shapes: dict[tuple[str, ...], list[tuple[str, Values]]] = {}
        for id_, values in instances.items():
            self._shapes.setdefault(tuple(sorted(values)), []).append((id_, values))
        self._indexes: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[_Tagged, list[str]]] = {}

    def of(self, values: Mapping[str, Scalar]) -> list[str]:
        """Return the instance with exactly these values or, without it, all that differ in none of them."""
        exact = tuple(sorted(values))
        if exact in self._shapes and (found := self._index(exact, exact).get(tagged(values, exact))):
            return found
        ids: list[str] = []
        for shape in self._shapes:
            shared = tuple(name for name in shape if name in values)
            ids += self._index(shape, shared).get(tagged(values, shared), ())
        return ids if len(self._shapes) == 1 else sorted(ids, key=self._position.__getitem__)

    def _index(self, shape: tuple[str, ...], names: tuple[str, ...]) -> dict[_Tagged, list[str]]:
        index = self._indexes.get((shape, names))
        if index is None:
            index = self._indexes[shape, names] = {}
            for id_, values in self._shapes[shape]:
                index.setdefault(tagged(values, names), []).append(id_)
        return index
