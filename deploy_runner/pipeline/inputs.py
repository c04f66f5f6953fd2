"""What a stage's inputs are: files of the project, and outputs of other stages, fan-ins expanded."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import closest
from ..store.folders import link_problem
from ..types import Kind, PathSource, RefSource, Scalar, Source
from . import interface
from .drafts import Draft, Ground
from .expressions import OutputRef, Scope, parse_output, resolve
from .loader import Node
from .partners import Partners
from .refusals import stores_file

__all__ = ["find_inputs", "leaves_project"]

_SHOWN = 12

_OF_THE_STORE = {
    "inside": ("belongs to the store and can't be an input", "use the output of a stage instead"),
    "around": ("contains the store and can't be an input", "use the folders in it that the stage reads"),
}


def find_inputs(ground: Ground, draft: Draft, matrix: dict[str, Scalar], scope: Scope) -> dict[str, Source]:
    """Return the inputs of one instance by their flat names."""
    shapes = interface.input_shapes(draft.type.cls)
    node = draft.node.value.get("inputs") or Node({}, draft.node.mark)
    flat: dict[str, Source] = {}
    for name, value in node.value.items():
        shape = shapes.get(name)
        if shape is None and not interface.is_open(draft.type.cls.Inputs):
            fix = closest(name, shapes) or f"its inputs are {', '.join(shapes) or 'none'}"
            what = f"stage {draft.name!r} ({draft.spec.uses})"
            ground.say(node.child_marks(name), f"{what} has no input {name!r}", fix)
            continue
        shape = shape or interface.InputShape("one", frozenset(("file", "folder")), True, "")
        flat |= _input(ground, name, value, shape, matrix, scope)
    for name, shape in shapes.items():
        if shape.required and name not in node.value:
            said = f": {shape.description}" if shape.description else ""
            mark = ground.root.value["stages"].child_marks(draft.name)
            message = f"stage {draft.name!r} ({draft.spec.uses}) needs the input {name!r}{said}"
            ground.say(mark, message, f"add `{name}:` under its `inputs:`")
    return flat


def _input(
    ground: Ground,
    name: str,
    node: Node,
    shape: interface.InputShape,
    matrix: dict[str, Scalar],
    scope: Scope,
) -> dict[str, Source]:
    if shape.container == "one":
        found = _sources(ground, node, matrix, scope, many=False)
        flat = {name: found[0][1]} if found else {}
    else:
        flat = _members(ground, name, node, shape, matrix, scope)
    for source in flat.values():
        _check_kind(ground, source, shape)
    return flat


def _members(
    ground: Ground,
    name: str,
    node: Node,
    shape: interface.InputShape,
    matrix: dict[str, Scalar],
    scope: Scope,
) -> dict[str, Source]:
    """Return the members of a mapping or list input, fan-ins expanded."""
    entries: list[tuple[str | None, Node]] = [(None, node)]
    if isinstance(node.value, dict):
        entries = list(node.value.items())
    elif isinstance(node.value, list):
        entries = [(None, child) for child in node.value]
    flat: dict[str, Source] = {}
    for key, child in entries:
        for label, source in _sources(ground, child, matrix, scope, many=True):
            instance = label[label.find("[") :] if "[" in label else ""
            member = label if key is None else f"{key}{instance}"
            flat[f"{name}/{len(flat) if shape.container == 'list' else member}"] = source
    return flat


def _sources(
    ground: Ground, node: Node, matrix: dict[str, Scalar], scope: Scope, *, many: bool
) -> list[tuple[str, Source]]:
    """Return (label, source) of one written input; a fan-in gives several."""
    if not isinstance(node.value, str):
        ground.say(node.mark, "an input is a path, or the output of a stage, as a string")
        return []
    ref = parse_output(node.value)
    if ref is not None:
        return _referenced(ground, ref, node, matrix, many=many)
    before = len(ground.problems)
    path = resolve(node, scope, ground.problems).value
    if len(ground.problems) > before:
        return []
    source = _path_source(ground, str(path), node)
    return [(Path(source.path).stem, source)] if source else []


def _referenced(
    ground: Ground, ref: OutputRef, node: Node, matrix: dict[str, Scalar], *, many: bool
) -> list[tuple[str, Source]]:
    draft = ground.drafts.get(ref.stage)
    if draft is None:
        if ref.stage not in ground.broken:
            fix = closest(ref.stage, ground.drafts)
            ground.say(node.mark, f"there is no stage {ref.stage!r}", fix)
        return []
    spec = draft.outputs.get(ref.output)
    if spec is None:
        fix = closest(ref.output, draft.outputs) or f"its outputs are {', '.join(draft.outputs)}"
        ground.say(node.mark, f"stage {ref.stage!r} has no output {ref.output!r}", fix)
        return []
    ids = _matching(ground, draft, ref, node, matrix)
    if len(ids) > 1 and not many:
        message = f"stage {ref.stage!r} has {len(ids)} instances, but this input takes one"
        fix = f"select one, e.g. stages.{ids[0]}.outputs.{ref.output}, or give this stage its matrix"
        ground.say(node.mark, message, fix)
        return []
    own = draft.instances
    fan_in = not ref.instance and (len(ids) > 1 or any(not own[id_].keys() <= matrix.keys() for id_ in ids))
    return [(id_ if fan_in else ref.stage, RefSource(id_, ref.output, spec.kind, node.mark)) for id_ in ids]


def _matching(
    ground: Ground, draft: Draft, ref: OutputRef, node: Node, matrix: dict[str, Scalar]
) -> list[str]:
    if ref.instance:
        id_ = f"{ref.stage}[{ref.instance}]"
        if id_ not in draft.instances:
            known = list(draft.instances)
            fix = closest(id_, known) or f"the instances are {', '.join(known[:_SHOWN])}"
            ground.say(node.mark, f"the matrix has no instance {id_}", fix)
            return []
        return [id_]
    if draft.partners is None:
        draft.partners = Partners(draft.instances)
    return draft.partners.of(matrix)


def _path_source(ground: Ground, path: str, node: Node) -> PathSource | None:
    if not path or leaves_project(path):
        ground.say(node.mark, f"{path!r} is not a path inside the project",
                  "paths are relative to the pipeline's folder")  # fmt: skip
        return None
    full = ground.folder / path
    if problem := link_problem(str(full)):
        ground.say(node.mark, f"{path} {problem}")
        return None
    if not full.exists():
        ground.say(node.mark, f"{path} does not exist", _near_file(full))
        return None
    if not full.is_dir() and not full.is_file():
        ground.say(node.mark, f"{path} is neither a file nor a folder", "use the path of a regular file")
        return None
    if how := stores_file(full, ground.folder, ground.environ):
        ground.say(node.mark, f"{path} {_OF_THE_STORE[how][0]}", _OF_THE_STORE[how][1])
        return None
    kind: Kind = "folder" if full.is_dir() else "file"
    return PathSource(os.path.normpath(path), kind, node.mark)


def _check_kind(ground: Ground, source: Source, shape: interface.InputShape) -> None:
    if source.kind not in shape.kinds and source.mark is not None:
        wanted = " or ".join(sorted(shape.kinds))
        what = source.path if isinstance(source, PathSource) else f"{source.stage}.{source.output}"
        ground.say(source.mark, f"{what} is a {source.kind}, this input is a {wanted}")


def leaves_project(path: str) -> bool:
    """Say whether a path is none inside the project."""
    return os.path.isabs(path) or ".." in Path(path).parts or "\0" in path


def _near_file(path: Path) -> str:
    try:
        return closest(path.name, os.listdir(path.parent))
    except OSError:
        return ""
