"""A stage's matrix → its instances, with `include` and `exclude` as in GitHub Actions.

What belongs together is found by an index: the work grows with the number of instances, not with its square.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import product
from math import prod

from ..errors import closest
from ..types import Json, Scalar
from .drafts import Draft, Enough, Ground, Matrix
from .expressions import Scope, resolve
from .loader import Node, plain
from .misfits import find_mark
from .partners import Values, tagged
from .references import whole

__all__ = ["expand", "expand_all"]

_MATRIX_OF = re.compile(r"stages\.([A-Za-z_][\w-]*)\.matrix\Z")
_RESERVED = ("include", "exclude")
_MOST_SHAPES = 100
_STEPS = 100
_LABEL_BYTES = 120
"""An id is also a file's name, of at most 255 bytes."""

Rows = list[Values]


def expand_all(ground: Ground, scope: Scope) -> None:
    """Give every stage its instances: one for each combination of its matrix, itself if it has none.

    A stage whose matrix is wrong, or too much, is left out.
    """
    count = 0
    for draft in list(ground.drafts.values()):
        matrix = _matrix(ground, draft, scope)
        count += len(matrix) if matrix else 1
        if matrix is not None and count > ground.max_instances:
            stages = ground.root.value["stages"]
            mark = find_mark(draft.node, ("matrix",)) if matrix else stages.child_marks(draft.name)
            message = f"the pipeline has {count} stages with the instances of {draft.name!r}"
            ground.say(mark, f"{message}; the limit is {ground.max_instances}", _raise_to(count))
            raise Enough
        if matrix is None:
            ground.broken.add(draft.name)
            del ground.drafts[draft.name]
        else:
            draft.instances = {f"{draft.name}[{label}]": values for label, values in matrix.items()}
            draft.instances = draft.instances or {draft.name: {}}


def _raise_to(count: int) -> str:
    return f"raise it by `max_instances: {count}` at the top of the pipeline"


def _matrix(ground: Ground, draft: Draft, scope: Scope) -> Matrix | None:
    """Return the values of each instance by label; nothing without a matrix, None where it is wrong."""
    path: list[str] = []
    while draft.name not in ground.matrices:
        node = draft.node.value.get("matrix")
        if node is None or not isinstance(node.value, str):
            ground.matrices[draft.name] = expand(ground, draft.name, node, scope) if node else {}
            break
        path.append(draft.name)
        ground.matrices[draft.name] = None  # What comes back here goes round in a cycle.
        found = _MATRIX_OF.match(whole(node.value) or "")
        source = ground.drafts.get(found.group(1)) if found else None
        if source is None:
            if not (found and found.group(1) in ground.broken):
                ground.say(node.mark, f"{node.value[:80]!r} is not a mapping of axes to values",
                           "or ${{ stages.NAME.matrix }} of another stage")  # fmt: skip
            return None
        draft = source
    result = ground.matrices[draft.name]
    if result is None and draft.name in path:
        mark = find_mark(ground.drafts[path[0]].node, ("matrix",))
        ground.say(mark, f"the matrix of {path[0]!r} is that of other stages in a cycle")
    ground.matrices |= dict.fromkeys(path, result)
    return result


def expand(ground: Ground, name: str, node: Node, scope: Scope) -> Matrix | None:
    """Return the combinations of one written matrix by label. What is wrong with it is said."""
    before = len(ground.problems)
    written = plain(resolve(node, scope, ground.problems))
    assert isinstance(written, dict)
    if len(ground.problems) > before:
        return None
    axes = {axis: _axis(ground, node, axis, v) for axis, v in written.items() if axis not in _RESERVED}
    excluded = _entries(ground, node, "exclude", written.get("exclude", []), axes)
    included = _entries(ground, node, "include", written.get("include", []), None)
    count = (prod(map(len, axes.values())) if axes else 0) + len(included)
    if count > ground.max_instances:
        said = f"the matrix of {name!r} has {count} combinations; the limit is {ground.max_instances} stages"
        ground.say(node.mark, said, _raise_to(count))
    if len(ground.problems) > before:
        return None
    rows = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())] if axes else []
    rows = _without(rows, excluded)
    labels = [list(row.values()) for row in rows]
    for entry in _include(ground, node, name, rows, included, axes):
        rows.append(entry)
        names = [*(axis for axis in axes if axis in entry), *(n for n in entry if n not in axes)]
        labels.append([entry[name] for name in names])
    if len({frozenset(row) for row in rows}) > _MOST_SHAPES:
        ground.say(find_mark(node, ("include",)), f"the instances of {name!r} have more than "
                   f"{_MOST_SHAPES} different sets of names")  # fmt: skip
    if written and not rows:
        ground.say(node.mark, f"the matrix of {name!r} has no combination left",
                   "remove an entry of `exclude`, or add values")  # fmt: skip
    matrix = _labelled(ground, node, name, rows, labels)
    return matrix if len(ground.problems) == before else None


def _axis(ground: Ground, node: Node, name: str, values: Json) -> list[Scalar]:
    mark = find_mark(node, (name,))
    if not isinstance(values, list) or not values:
        ground.say(mark, f"the matrix axis {name!r} must be a list of values")
        return []
    if any(isinstance(value, (list, dict)) for value in values):
        ground.say(mark, f"the values of the matrix axis {name!r} must not be collections",
                   "use `include` for values that belong together")  # fmt: skip
        return []
    return values  # type: ignore[return-value]


def _entries(ground: Ground, node: Node, key: str, entries: Json, axes: Mapping[str, object] | None) -> Rows:
    """Return the mappings under `include` or `exclude`; an excluded name must be one of `axes`."""
    what = f"`{key}` of a matrix must be a list of mappings of names to values"
    if not isinstance(entries, list):
        ground.say(find_mark(node, (key,)), what)
        return []
    rows: Rows = []
    for index, entry in enumerate(entries):
        mark = find_mark(node, (key, index))
        if (
            not isinstance(entry, dict)
            or not entry
            or any(isinstance(v, (list, dict)) for v in entry.values())
        ):
            ground.say(mark, what)
            continue
        for name in entry:
            if axes is not None and name not in axes:
                ground.say(mark, f"the matrix has no axis {name!r} to exclude", closest(name, axes))
        rows.append(entry)  # type: ignore[arg-type]
    if len({frozenset(row) for row in rows}) > _MOST_SHAPES:
        message = f"the entries of `{key}` have more than {_MOST_SHAPES} different sets of names"
        ground.say(find_mark(node, (key,)), message)
    return rows


def _without(rows: Rows, excluded: Rows) -> Rows:
    """Return the rows that have not all values of an excluded entry."""
    shapes: dict[tuple[str, ...], set[object]] = {}
    for entry in excluded:
        names = tuple(sorted(entry))
        shapes.setdefault(names, set()).add(tagged(entry, names))
    return [row for row in rows if not any(tagged(row, n) in found for n, found in shapes.items())]


def _include(
    ground: Ground, node: Node, name: str, rows: Rows, included: Rows, axes: Mapping[str, object]
) -> Iterator[Values]:
    """Add each entry to the rows whose values it doesn't change; yield those that fit no row.

    It may change what another entry has added, and it is never added to a row that an entry made.
    """
    rows = list(rows)
    indexes: dict[tuple[str, ...], dict[object, Rows]] = {}
    steps = 0
    for entry in included:
        names = tuple(axis for axis in axes if axis in entry)
        if names not in indexes:
            index = indexes[names] = {}
            for row in rows:
                index.setdefault(tagged(row, names), []).append(row)
        fitting = indexes[names].get(tagged(entry, names), [])
        steps += len(fitting)
        if steps > _STEPS * ground.max_instances:
            most = _STEPS * ground.max_instances
            message = f"the `include` of {name!r} changes more than {most} values"
            ground.say(find_mark(node, ("include",)), message, "write fewer entries without an axis")
            return
        for row in fitting:
            row |= {name: value for name, value in entry.items() if name not in axes}
        if not fitting:
            yield dict(entry)


def _labelled(
    ground: Ground, node: Node, name: str, rows: Rows, labels: Sequence[Sequence[Scalar]]
) -> Matrix:
    matrix: Matrix = {}
    for row, values in zip(rows, labels, strict=True):
        label = _short(",".join(map(_label, values)))
        if label in matrix:
            ground.say(node.mark, f"the matrix of {name!r} gives {name}[{label}] twice")
        matrix[label] = row
    return matrix


def _label(value: Scalar) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return _short(re.sub(r"[^\w.+-]", "_", text))


def _short(text: str) -> str:
    data = text.encode()
    if len(data) <= _LABEL_BYTES:
        return text
    return f"{data[: _LABEL_BYTES - 12].decode(errors='ignore')}_{sha256(data).hexdigest()[:8]}"
