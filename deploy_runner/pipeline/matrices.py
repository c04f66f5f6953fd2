"""A stage's matrix → its instances."""

from __future__ import annotations

import json
import re
from itertools import product

from ..types import Json, Scalar
from .drafts import Draft, Ground
from .expressions import Scope, resolve
from .loader import Node, plain
from .misfits import find_mark

__all__ = ["expand"]

_MATRIX_OF = re.compile(r"\$\{\{\s*stages\.([A-Za-z_][\w-]*)\.matrix\s*\}\}\Z")


def expand(ground: Ground, draft: Draft, scope: Scope) -> None:
    """Give a stage its instances: one for each combination of its matrix, itself if it has none."""
    axes = _axes(ground, draft, scope, [])
    draft.axes = axes
    if not axes:
        draft.instances = {draft.name: {}}
        return
    for values in product(*axes.values()):
        id_ = f"{draft.name}[{','.join(_label(v) for v in values)}]"
        if id_ in draft.instances:
            mark = find_mark(draft.node, ("matrix",))
            ground.say(mark, f"the matrix of {draft.name!r} gives {id_} twice")
        draft.instances[id_] = dict(zip(axes, values, strict=True))


def _axes(ground: Ground, draft: Draft, scope: Scope, seen: list[str]) -> dict[str, list[Scalar]]:
    node = draft.node.value.get("matrix")
    if node is None:
        return {}
    if isinstance(node.value, str):
        found = _MATRIX_OF.match(node.value.strip())
        source = ground.drafts.get(found.group(1)) if found else None
        if found and found.group(1) in ground.broken:
            return {}
        if source is None or draft.name in seen:
            ground.say(node.mark, f"{node.value!r} is not a mapping of axes to values",
                      "or ${{ stages.NAME.matrix }} of another stage")  # fmt: skip
            return {}
        return _axes(ground, source, scope, [*seen, draft.name])
    resolved = plain(resolve(node, scope, ground.problems))
    assert isinstance(resolved, dict)
    return {name: _axis(ground, node, name, values) for name, values in resolved.items()}


def _axis(ground: Ground, node: Node, name: str, values: Json) -> list[Scalar]:
    mark = find_mark(node, (name,))
    if not isinstance(values, list) or not values:
        ground.say(mark, f"the matrix axis {name!r} must be a list of values")
        return [""]
    if any(isinstance(value, (list, dict)) for value in values):
        ground.say(mark, f"the values of the matrix axis {name!r} must not be collections")
        return [""]
    return values  # type: ignore[return-value]


def _label(value: Scalar) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return re.sub(r"[^\w.+-]", "_", text)
