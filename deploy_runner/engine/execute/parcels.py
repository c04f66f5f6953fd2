"""What travels between the driver of a run and a node of a cluster: an action there, its end back.

Files travel by digest through the shared cache: inputs, the user's code, the project's own stage types. On
the node the code is laid out again below a folder of its own, under the same relative paths. What is
installed there is not sent but compared with what is in the key.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import StageError
from ...registry import is_projects
from ...store.cas import Store
from ...store.files import writing
from ...types import (
    VERSION,
    Artifact,
    Json,
    PathSource,
    RefSource,
    RemoteSpec,
    SourceFile,
    StageNode,
    StageResult,
)
from ...usercode.installed import origin_of
from ..keys import KeyEnvironment
from ..plan import Decision
from .action import Action, Project

__all__ = [
    "Address", "Parcel", "Returned", "Travelling", "differences", "lay_out", "opened", "pack", "sealed",
    "travelling",
]  # fmt: skip

_PROJECT, _OUTSIDE = "project", "outside"


class Address(NamedTuple):
    """Which stores a node uses.

    `home` is the driver's own store, if the node is on the driver's machine, and empty for one of the
    node's own. With `sends` the node sends outputs to the shared cache.
    """

    home: str
    protected: str
    remote: RemoteSpec | None
    sends: bool


class Travelling(NamedTuple):
    """A file of the project: where it is, where it goes below the node's folder, and what it is."""

    source: str
    place: str
    artifact: Artifact


class Parcel(NamedTuple):
    """An action as it travels. `expected` are the packages, facets and sources that its key was made of."""

    name: str
    project: Project
    node: StageNode
    decision: Decision
    files: tuple[Travelling, ...]
    expected: Mapping[str, Json]
    address: Address
    preload: Mapping[bool, Sequence[str]]
    require_sandbox: bool
    keep_workdir: bool


class Returned(NamedTuple):
    """How an action ended on a node. `batches` is how many batches of lines were sent before.

    `lines` are those that were not sent. `evidence` is what a failed gate left. `node` is its address.
    """

    result: StageResult
    lost: tuple[Artifact, ...] = ()
    evidence: Artifact | None = None
    started: bool = False
    lines: tuple[str, ...] = ()
    batches: int = 0
    node: str = ""


def travelling(
    node: StageNode, inputs: Mapping[str, Artifact], root: str, digests: Callable[[str], str]
) -> Iterator[Travelling]:
    """Yield the files that an action reads from the project, its inputs among them.

    `digests` hashes a file. Raises OSError for one that can't be read.
    """
    for name, source in node.inputs.items():
        if isinstance(source, PathSource):
            yield Travelling(f"{root}/{source.path}", "", inputs[name])
    for file in (*node.code, *_own_implementation(node)):
        inside = file.path.startswith(f"{root}/")
        place = f"{_PROJECT}/{os.path.relpath(file.path, root)}" if inside else f"{_OUTSIDE}/{file.name}"
        yield Travelling(file.path, place, Artifact(digests(file.path), "file", os.path.getsize(file.path)))


def _own_implementation(node: StageNode) -> tuple[SourceFile, ...]:
    """Return the files of the project's own stage type; none for one that is installed."""
    if not is_projects(node.module):
        return ()
    return tuple(file for file in node.implementation if file.path.startswith(f"{node.stage_dir}/"))


def pack(
    action: Action,
    project: Project,
    files: Sequence[Travelling],
    keys: KeyEnvironment,
    address: Address,
    preload: Mapping[bool, Sequence[str]],
    *,
    require_sandbox: bool,
    keep_workdir: bool,
) -> Parcel:
    """Return an action as it travels; `files` are what `travelling` yielded."""
    node = action.node
    own = {file.name for file in _own_implementation(node)}
    sources = keys.digests(node.implementation)
    expected: dict[str, Json] = {
        "packages": {name: keys.version(name) for name in node.packages},
        "facets": {name: keys.facet(name) for name in node.facets},
        "sources": {name: digest for name, digest in sources.items() if name not in own},
    }
    decision = action.decision._replace(preimage={}, record=None)
    placed = () if address.home else tuple(file for file in files if file.place)
    return Parcel(
        action.name,
        project,
        node,
        decision,
        placed,
        expected,
        address,
        preload,
        require_sandbox,
        keep_workdir,
    )


def sealed(parcel: Parcel) -> bytes:
    """Return a parcel as bytes, after the version of what wrote it."""
    return VERSION.encode() + b"\n" + pickle.dumps(parcel)


# On the node --------------------------------------------------------------------------------------


def opened(data: bytes, node: str) -> Parcel:
    """Return the parcel that `sealed` was given. Raises StageError where another version did that."""
    version, _, body = data.partition(b"\n")
    if version != VERSION.encode():
        raise StageError(
            f"the node {node} has deploy-runner {VERSION}, the driver {version.decode(errors='replace')}",
            fix="install the same version there",
        )
    parcel: Parcel = pickle.loads(body)
    return parcel


def lay_out(parcel: Parcel, store: Store, folder: Path) -> tuple[StageNode, Project]:
    """Lay a parcel's files out below the folder of its run, and return the stage and the project there.

    The store has the files. Raises StoreError where one can't be written.
    """
    node, root = parcel.node, parcel.project.root
    node = node._replace(resources=node.resources._replace(custom={}))
    if parcel.address.home:
        return node, parcel.project
    there = f"{folder}/{_PROJECT}"
    with writing(there):
        os.makedirs(there, exist_ok=True)
    for file in parcel.files:
        place = folder / file.place
        if not place.exists():
            with writing(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            store.materialise(file.artifact, place)
    places = {file.source: f"{folder}/{file.place}" for file in parcel.files}

    def moved(files: tuple[SourceFile, ...]) -> tuple[SourceFile, ...]:
        return tuple(f._replace(path=places[f.path]) for f in files if f.path in places)

    stage_dir = f"{there}{node.stage_dir.removeprefix(root)}"
    if not is_projects(node.module):
        stage_dir = str(_installed_folder(node) or "")
    inputs = {n: RefSource("", n) if isinstance(s, PathSource) else s for n, s in node.inputs.items()}
    node = node._replace(
        inputs=inputs, code=moved(node.code), stage_dir=stage_dir, implementation=moved(node.implementation)
    )
    return node, parcel.project._replace(root=there)


def _installed_folder(node: StageNode) -> Path | None:
    """Return the folder that an installed package's stage types are in on this machine."""
    import importlib.util

    parts = node.module.split(".")
    tail = f"/{node.stage_dir.strip('/')}"
    for count in range(len(parts) - 1, 0, -1):
        if tail.endswith("/" + "/".join(parts[:count])):
            spec = importlib.util.find_spec(".".join(parts[:count]))
            if spec is not None and spec.submodule_search_locations:
                return Path(next(iter(spec.submodule_search_locations)))
    return None


def differences(parcel: Parcel, keys: KeyEnvironment) -> list[str]:
    """Return in words what this machine has in another version than the action's key says."""
    found: list[str] = []
    for name, wanted in _rows(parcel, "packages"):
        here = keys.version(name)
        if here != wanted:
            has = f"no {name}" if here == "absent" else f"{name} {here}"
            found.append(f"{has} where the key has {wanted}")
    for name, wanted in _rows(parcel, "facets"):
        if keys.facet(name) != wanted:
            found.append(f"the platform {name} {keys.facet(name)} where the key has {wanted}")
    unequal = [
        name for name, wanted in _rows(parcel, "sources") if _source(parcel.node, name, keys) != wanted
    ]
    if unequal:
        more = f" and {len(unequal) - 1} more" if len(unequal) > 1 else ""
        found.append(f"another {unequal[0]}{more} of the stage type {parcel.node.uses}")
    return found


def _rows(parcel: Parcel, part: str) -> list[tuple[str, Json]]:
    rows = parcel.expected[part]
    return list(rows.items()) if isinstance(rows, dict) else []


def _source(node: StageNode, name: str, keys: KeyEnvironment) -> Json:
    """Return the digest that a source of an installed stage type has on this machine, if it is there."""
    folder = _installed_folder(node) if not is_projects(node.module) else None
    candidates: list[Path] = []
    if folder is not None:
        candidates += [folder / name, folder.parent / name]
    origin = origin_of([name.partition("/")[0].removesuffix(".py")])
    if origin is not None and name in origin.files:
        candidates.append(origin.files[name])
    for path in candidates:
        if path.is_file():
            file = SourceFile(name, str(path))
            return keys.digests((file,))[name]
    return None
