"""`doctor`: check, before anything runs, that what a pipeline needs is on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DeployRunnerError
from ..types import Graph, Json, StageNode
from ..usercode.advice import how_to_install
from . import live
from .advice import advice
from .options import JsonSwitch, Selection

if TYPE_CHECKING:
    from ..api import Pipeline

__all__ = ["Check", "Doctor"]

_IMPORT_S = 300
_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `fix` says what to do if `ok` is False, `note` that it is advice."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    note: bool = False

    def __str__(self) -> str:
        fix = f" ({self.fix})" if self.fix and not self.ok else ""
        state = "note" if self.note else "ok  " if self.ok else "FAIL"
        return f"{state} {self.name}: {self.detail}{fix}"

    def as_dict(self) -> dict[str, Json]:
        """Return the check as JSON."""
        return asdict(self)


class Doctor(NamedTuple):
    """Check that everything a pipeline needs is installed and set."""

    selection: Selection
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print every check; exit 2 where one says that something is missing."""
        checks = _examine(self.selection.load())
        if self.json:
            print(json.dumps([check.as_dict() for check in checks], ensure_ascii=False))
        else:
            for check in checks:
                print(check)
        return 0 if all(check.ok for check in checks) else 2


def _examine(pipeline: Pipeline) -> list[Check]:
    """Return every check for this pipeline and target, the passed ones too."""
    graph = pipeline.graph
    return [
        _python(),
        _disk(Path(graph.root)),
        _sandbox(),
        *_extras(graph),
        *_runtimes(),
        *_compiler(graph),
        *_secrets(graph, pipeline.environ),
        *_shared_cache(pipeline),
        *_target(pipeline),
        *_credentials(pipeline),
        *_advice(graph),
    ]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), version, "use Python 3.11 or newer")


def _disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    writable = os.access(root, os.W_OK)
    detail = f"{free / 1024**3:.1f} GiB free" + ("" if writable else ", not writable")
    return Check("disk", writable and free > _FREE_BYTES, detail, "free 2 GiB, or set DEPLOY_RUNNER_HOME")


def _sandbox() -> Check:
    from ..engine.execute.supervisor import probe

    return Check("sandbox", True, str(probe()))


def _extras(graph: Graph) -> Iterator[Check]:
    from ..registry import load_class

    needed: dict[str, tuple[str, list[str]]] = {"deploy_runner.engine.execute.server": ("", [])}
    for node in graph.stages.values():
        cls = load_class(node.module, node.class_name, node.stage_dir)
        for module in (*node.preload, *_modules(cls.packages)):
            needed.setdefault(module, (cls.extra, []))[1].append(node.id)
        for module in _imported(node):
            needed.setdefault(module, ("", []))[1].append(node.id)
    refusals = _tried(sorted(needed))
    for module, (extra, ids) in sorted(needed.items()):
        said = refusals.get(module, "") if refusals is not None else "the workers' Python does not start"
        detail = ", needed by ".join(filter(None, (said, ", ".join(ids)))) if said else "installed"
        fix = f"pip install 'deploy-runner[{extra}]'" if extra else how_to_install(module)
        yield Check(module, not said, detail, fix)


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


def _compiler(graph: Graph) -> Iterator[Check]:
    ids = [node.id for node in graph.stages.values() if "g++" in node.facets]
    if ids:
        found = shutil.which("g++")
        detail = found or f"missing, needed by {', '.join(ids)}"
        yield Check("g++", found is not None, detail, "install it, e.g. apt-get install g++")


def _imported(node: StageNode) -> Iterator[str]:
    """Yield the installed modules that the stage's code imports when it is itself imported."""
    import ast

    own = {part for file in node.code for part in PurePosixPath(file.name).with_suffix("").parts}
    for file in node.code:
        body = ast.parse(Path(file.path).read_bytes()).body if file.name.endswith(".py") else []
        names = [alias.name for part in body if isinstance(part, ast.Import) for alias in part.names]
        names += [str(part.module) for part in body if isinstance(part, ast.ImportFrom) and not part.level]
        tops = {name.partition(".")[0] for name in names}
        yield from sorted(tops - own - sys.stdlib_module_names - {"deploy_runner"})


_TRY = """
import importlib
import deploy_runner  # It silences what would report that it was imported.
refused = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
        refused[name] = "missing" if missing else f"{type(error).__name__}: {error}".partition(chr(10))[0]
print()
print(json.dumps(refused))
"""


def _tried(modules: list[str]) -> dict[str, str] | None:
    """Import modules as a run does, in the fork server's Python; return what is wrong with them.

    None means that this Python itself does not start.
    """
    from ..engine.execute.fork import environment, interpreter

    command = [*interpreter(_TRY), json.dumps(modules)]
    try:
        done = subprocess.run(command, env=environment(1), capture_output=True, text=True,
                              timeout=_IMPORT_S, check=False)  # fmt: skip
        found: dict[str, str] = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return found


def _modules(packages: Sequence[str]) -> Iterator[str]:
    for package in packages:
        name = package.replace("-", "_").lower()
        yield {
            "sagemaker_core": "sagemaker",
            "pillow": "PIL",
            "pyyaml": "yaml",
            "scikit_learn": "sklearn",
            "protobuf": "google.protobuf",
        }.get(name, name)


def _secrets(graph: Graph, environ: Mapping[str, str]) -> Iterator[Check]:
    for node in graph.stages.values():
        for name in node.secrets:
            yield Check(
                f"secret {name}",
                name in environ,
                "set" if name in environ else f"not set, needed by {node.id}",
                f"export {name}=…",
            )


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
        yield Check("target", False, problem.message, problem.fix or problem.where)


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
