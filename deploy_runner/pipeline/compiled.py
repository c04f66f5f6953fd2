"""Compile a pipeline, or take the compiled form from the store if nothing it read has changed.

Validating a pipeline imports pydantic, PyYAML and every stage type it uses. A run that has
nothing to do must not pay for that, so the graph is kept as JSON beside the fingerprints of
every file it was made from.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..store.files import read_or_none, write_atomic
from ..store.namespace import configured_home
from ..store.seal import Seal
from ..store.stat import fingerprint
from ..types import (
    SCHEMA_VERSION,
    Executor,
    Graph,
    Mark,
    OutputSpec,
    PathSource,
    RefSource,
    RemoteSpec,
    Resources,
    Source,
    SourceFile,
    StageNode,
)
from ..usercode.installed import search_path
from .credentials import Credentials

__all__ = ["compile_pipeline"]

_ENGINE = ("pipeline/*.py", "usercode/*.py", "registry.py", "sdk.py", "types.py")
"""What of our own code decides what a compiled pipeline is."""
_RACY_NS = 2_000_000_000

_OWN = tuple(map(StageNode._fields.index, ("id", "base", "matrix", "params", "inputs", "mark")))
"""Where the fields are that differ from stage to stage; many stages are equal in all others."""
_OUTPUTS, _IMPLEMENTATION, _CODE, _RESOURCES = map(
    StageNode._fields.index, ("outputs", "implementation", "code", "resources")
)
_TUPLES = tuple(map(StageNode._fields.index, ("needs", "secrets", "packages", "facets", "preload")))
"""Where the fields are that JSON has in another form."""


def compile_pipeline(
    path: Path,
    *,
    overlays: Sequence[Path] = (),
    sets: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    home: Path | None = None,
    on_compile: Callable[[], None] | None = None,
) -> Graph:
    """Return the compiled pipeline.

    Raises SpecError with every problem of the file, UsageError where a file is missing. The
    compiled form is kept in `home`, if that can be written; if it is missing, `on_compile` is
    called before the work begins.
    """
    if home is None:
        home = configured_home(path.absolute().parent, environ)
    names = [str(path), os.path.abspath(path), [str(o) for o in overlays], list(sets), os.getcwd()]
    cache = home / "compiled" / f"{sha256(json.dumps(names).encode()).hexdigest()[:32]}.json"
    seal = Seal(home)
    known = _read(cache, environ, seal)
    if known is not None:
        return known
    if on_compile is not None:
        on_compile()
    graph, env_names, files = _compile(path, overlays, sets, environ)
    if home.parent.is_dir():
        _write(cache, graph, {name: environ.get(name) for name in env_names}, files, seal)
    return graph


def _compile(
    path: Path, overlays: Sequence[Path], sets: Sequence[str], environ: Mapping[str, str]
) -> tuple[Graph, frozenset[str], list[str]]:
    # Looking for pydantic's plugins reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from ..registry import Registry
    from .build import build
    from .overlay import DEFAULT_OVERLAY, load_document

    document = load_document(path, overlays, sets)
    root = path.absolute().parent
    registry = Registry(root)
    graph, env_names = build(document, path, environ, registry)
    files = {os.path.abspath(f) for f in document.files}
    files |= {str(root / DEFAULT_OVERLAY), str(root / "stages")}
    package = Path(__file__).parent.parent
    files |= {str(file) for pattern in _ENGINE for file in package.glob(pattern)}
    for node in graph.stages.values():
        files.update(f.path for f in (*node.implementation, *node.code))
    files.update(map(str, registry.absent))
    files.update(_places(root))
    return graph, env_names, sorted(files)


def _places(root: Path) -> Iterator[str]:
    """Yield the folders in which another module may appear; what changes in the project is no sign."""
    for folder in search_path():
        if not (root == Path(folder) or root in Path(folder).parents or Path(folder) in root.parents):
            yield folder


def _read(cache: Path, environ: Mapping[str, str], seal: Seal) -> Graph | None:
    data = read_or_none(cache)
    if data is None:
        return None
    try:
        body = seal.opened(data, "compiled", cache.stem)
        if body is None:
            return None
        text = body.decode()
        value = json.loads(text)
        if value["schema"] != [SCHEMA_VERSION, sys.version, search_path()]:
            return None
        if any(environ.get(name) != known for name, known in value["environ"].items()):
            return None
        if not all(_unchanged(*row) for row in value["files"]):
            return None
        graph = _graph_from_json(value["graph"])
        return None if _exposes(graph, text, value["environ"], environ) else graph
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, StoreError):
        return None


def _exposes(graph: Graph, text: str, used: Mapping[str, str | None], environ: Mapping[str, str]) -> bool:
    """Say whether the graph holds what has become a credential since: compiling again rejects it."""
    secrets = {name for node in graph.stages.values() if node.secrets for name in node.secrets}
    known = Credentials(environ, secrets)
    return any(known.known(part) for part in (text, *used.values()) if part is not None)


def _write(
    cache: Path, graph: Graph, environ: Mapping[str, str | None], files: Iterable[str], seal: Seal
) -> None:
    value = {
        "schema": [SCHEMA_VERSION, sys.version, search_path()],
        "environ": dict(environ),
        "files": [_row(file) for file in files],
        "graph": _graph_to_json(graph),
    }
    try:
        body = json.dumps(value, separators=(",", ":")).encode()
        write_atomic(cache, seal.sealed(body, "compiled", cache.stem), tmp=cache.parent.parent / "tmp")
    except StoreError:
        return  # The run itself says that the store can't be written.


def _row(file: str) -> list[Any]:
    """Return [path, state, digest]: the digest only where the time stamps are too young."""
    state = _state(file)
    if state is None or time.time_ns() - max(state[1], state[2]) > _RACY_NS:
        return [file, state, None]
    return [file, state, _content(file)]


def _unchanged(file: str, state: list[int] | None, digest: str | None) -> bool:
    return _state(file) == state and (digest is None or _content(file) == digest)


def _state(file: str) -> list[int] | None:
    try:
        return list(fingerprint(file))
    except OSError:
        return None


def _content(file: str) -> str:
    data = read_or_none(file)
    if data is None:
        data = "\n".join(sorted(os.listdir(file))).encode()
    return sha256(data).hexdigest()


# The graph as JSON: rows instead of objects, and what many of them have in common only once. ----


def _graph_to_json(graph: Graph) -> dict[str, Any]:
    sources: dict[tuple[SourceFile, ...], int] = {}
    kinds: dict[str, int] = {}
    rows = [_node_to_row(node, sources, kinds) for node in graph.stages.values()]
    return {
        "name": graph.name,
        "root": graph.root,
        "pipeline": graph.pipeline,
        "vars": dict(graph.vars),
        "origins": dict(graph.origins),
        "target": dict(graph.target),
        "live": graph.live,
        "cache": list(graph.cache),
        "executor": list(graph.executor),
        "fields": StageNode._fields,
        "sources": [[[f.name, f.path] for f in files] for files in sources],
        "kinds": list(map(json.loads, kinds)),
        "stages": rows,
    }


def _node_to_row(
    node: StageNode, sources: dict[tuple[SourceFile, ...], int], kinds: dict[str, int]
) -> list[Any]:
    """Return the number of the node's kind, which has its other fields in order, and its own fields."""
    named = node._asdict()
    named["matrix"], named["params"] = dict(node.matrix), dict(node.params)
    named["env"], named["target"] = dict(node.env), dict(node.target)
    named["inputs"] = {name: _source_to_row(source) for name, source in node.inputs.items()}
    named["implementation"] = sources.setdefault(node.implementation, len(sources))
    named["code"] = sources.setdefault(node.code, len(sources))
    fields = list(named.values())
    own = [fields[index] for index in _OWN]
    for index in _OWN:
        fields[index] = None
    return [kinds.setdefault(json.dumps(fields), len(kinds)), *own]


def _source_to_row(source: Source) -> list[Any]:
    if isinstance(source, PathSource):
        return [source.path, None, source.kind, source.mark]
    return list(source)


def _graph_from_json(value: dict[str, Any]) -> Graph:
    """Return the graph. Raises ValueError where a node had other fields when this was written."""
    if tuple(value.pop("fields")) != StageNode._fields:
        raise ValueError
    sources = [tuple(SourceFile(*f) for f in files) for files in value.pop("sources")]
    kinds = [_kind_from_row(row, sources) for row in value.pop("kinds")]
    nodes = [_node_from_row(row, kinds) for row in value.pop("stages")]
    url, push, required, public_keys, timeout_s = value.pop("cache")
    cache = RemoteSpec(url, push, required, tuple(public_keys), timeout_s)
    executor = Executor(*value.pop("executor"))
    return Graph(stages={node.id: node for node in nodes}, cache=cache, executor=executor, **value)


def _kind_from_row(row: list[Any], sources: list[tuple[SourceFile, ...]]) -> list[Any]:
    row[_OUTPUTS] = {name: OutputSpec(*output) for name, output in row[_OUTPUTS].items()}
    row[_IMPLEMENTATION], row[_CODE] = sources[row[_IMPLEMENTATION]], sources[row[_CODE]]
    for index in _TUPLES:
        row[index] = tuple(row[index])
    row[_RESOURCES] = Resources(*row[_RESOURCES])
    return row


def _node_from_row(row: list[Any], kinds: list[list[Any]]) -> StageNode:
    kind, id_, base, matrix, params, inputs, mark = row
    inputs = {name: _source_from_row(source) for name, source in inputs.items()}
    fields = kinds[kind].copy()
    for index, value in zip(_OWN, (id_, base, matrix, params, inputs, Mark(*mark)), strict=True):
        fields[index] = value
    return StageNode._make(fields)


def _source_from_row(row: list[Any]) -> Source:
    place, output, kind, mark_row = row
    mark = Mark(*mark_row) if mark_row else None
    if output is None:
        return PathSource(place, kind, mark)
    return RefSource(place, output, kind, mark)
