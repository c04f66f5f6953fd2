"""`doctor`: check, before anything runs, that this machine can run the stages of a pipeline."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DeployRunnerError, StageError, StoreError
from ..store.namespace import HOME_VARIABLE, configured_home
from ..types import Graph, StageNode
from . import live
from .advice import advice
from .checks import Check
from .doctor_workers import versions, workers
from .options import JsonSwitch, Selection

if TYPE_CHECKING:
    from ..api import Pipeline

__all__ = ["Doctor"]

_FREE_BYTES = 2 * 1024**3


class Doctor(NamedTuple):
    """Check that every stage of a pipeline can run here."""

    selection: Selection
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print every check; exit 1 where one says that a stage can't run here."""
        checks = _examine(self.selection.load())
        if self.json:
            print(json.dumps([check.as_dict() for check in checks], ensure_ascii=False))
        else:
            for check in checks:
                print(check)
        return 0 if all(check.ok for check in checks) else 1


def _examine(pipeline: Pipeline) -> list[Check]:
    """Return every check for this pipeline and target, the passed ones too."""
    graph = pipeline.graph
    store = _store(pipeline)
    return [
        _python(),
        store,
        _disk(pipeline.home),
        _sandbox(),
        *(workers(pipeline) if store.ok else ()),
        *versions(graph),
        *_runtimes(),
        *_resources(pipeline),
        *_compiler(graph),
        *_secrets(graph, pipeline.environ),
        *_shared_cache(pipeline),
        *_target(pipeline),
        *(_credentials(pipeline) if store.ok else ()),
        *_advice(graph),
    ]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _store(pipeline: Pipeline) -> Check:
    """Say which store is used, why that one, and whether a run can write to it."""
    environ, graph = pipeline.environ, pipeline.graph
    if environ.get(HOME_VARIABLE, "").strip():
        why = f"{HOME_VARIABLE} is {environ[HOME_VARIABLE].strip()}"
    else:
        why = f"beside the pipeline, for {HOME_VARIABLE} is not set"
    if pipeline.home != configured_home(Path(graph.root), environ):
        why += "; a pull request writes to a part of its own"
    try:
        pipeline.store.new_tmp()
    except StoreError as error:
        return Check("store", False, error.message, error.fix, stages=tuple(graph.stages.values()))
    return Check("store", True, f"{pipeline.home} ({why})")


def _disk(home: Path) -> Check:
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    return Check("disk", free > _FREE_BYTES, f"{free / 1024**3:.1f} GiB free for the store",
                 f"free 2 GiB, or set {HOME_VARIABLE} to a folder of another disk")  # fmt: skip


def _sandbox() -> Check:
    from ..engine.execute.supervisor import probe

    return Check("sandbox", True, str(probe()))


def _runtimes() -> Iterator[Check]:
    """Say where two distributions have written over each other: they share the folder `onnxruntime`."""
    from ..usercode.installed import distributions, search_path

    for folder in search_path():
        if not {"onnxruntime", "onnxruntime_gpu"} <= distributions(folder).keys():
            continue
        yield Check(
            "onnxruntime", False, "onnxruntime and onnxruntime-gpu are both installed, and share one folder",
            "pip uninstall onnxruntime onnxruntime-gpu, then install the one that you want",
        )  # fmt: skip


def _resources(pipeline: Pipeline) -> Iterator[Check]:
    """Name what a local run has no GPU for; a cluster has its own."""
    from ..engine.execute import gpus

    for node in pipeline.graph.stages.values() if pipeline.graph.executor.name == "local" else ():
        try:
            gpus.require(node.resources, pipeline.environ)
        except StageError as error:
            yield Check("resources", False, error.message, error.fix, stages=(node,))


def _compiler(graph: Graph) -> Iterator[Check]:
    nodes = tuple(node for node in graph.stages.values() if "g++" in node.facets)
    if nodes:
        found = shutil.which("g++")
        fix = "install it, e.g. apt-get install g++"
        yield Check("g++", found is not None, found or "missing", fix, stages=nodes)


def _secrets(graph: Graph, environ: Mapping[str, str]) -> Iterator[Check]:
    needed: dict[str, list[StageNode]] = {}
    for node in graph.stages.values():
        for name in node.secrets:
            needed.setdefault(name, []).append(node)
    for name, nodes in needed.items():
        there = name in environ
        yield Check(f"secret {name}", there, "set" if there else "not set", f"export {name}=…",
                    stages=tuple(nodes))  # fmt: skip


def _shared_cache(pipeline: Pipeline) -> Iterator[Check]:
    """Try the shared cache as a run would. Reading and writing take `cache.timeout` each at most."""
    if pipeline.remote is None:
        return
    missing = [name for name in ("obstore", "cryptography") if not find_spec(name)]
    yield Check("shared cache", not missing, f"{missing[0]} is missing" if missing else "installed",
                "pip install 'deploy-runner[remote]'")  # fmt: skip
    if missing:
        return
    from ..store.link import Link
    from .cache_status import cannot_read, cannot_write

    link = Link(pipeline.remote._replace(required=False), pipeline.environ)
    unread = cannot_read(link)
    yield _tried_out("shared cache can be read", unread, link.remote.url)
    if not link.spec.push:
        yield Check("signing key", True, "none needed: cache.push is not set, so nothing is uploaded")
        return
    obstacle = link.obstacle
    yield _tried_out("signing key", obstacle, f"its public key is {link.signatures.public_key}")
    if unread is None and obstacle is None:
        yield _tried_out("shared cache can be written", cannot_write(link), link.remote.url)


def _tried_out(name: str, error: DeployRunnerError | None, detail: str) -> Check:
    return Check(name, True, detail) if error is None else Check(name, False, error.message, error.fix)


def _target(pipeline: Pipeline) -> Iterator[Check]:
    from ..engine.targets import target_problems

    for problem in target_problems(pipeline.graph, (), pipeline.environ):
        where = "" if problem.where == pipeline.graph.pipeline else f"{problem.where}: "
        yield Check("target", False, f"{where}{problem.message}", problem.fix)


def _credentials(pipeline: Pipeline) -> Iterator[Check]:
    """Ask one push of each type, as a run would, what it authenticates by."""
    pushes = {node.uses: node.id for node in pipeline.graph.stages.values() if node.converges}
    if pushes and not pipeline.graph.live:
        yield Check("credentials", True, "none needed: the target is a dry run")
        return
    for uses, id_ in pushes.items():
        try:
            found = live.credentials(pipeline, id_)
        except DeployRunnerError as error:
            yield Check(f"credentials of {uses}", False, error.message, error.fix)
        else:
            yield Check(f"credentials of {uses}", True, found or "none needed")


def _advice(graph: Graph) -> Iterator[Check]:
    for stage, sentences in advice(graph).items():
        for said in sentences:
            yield Check(stage, True, said, note=True)
