"""The part of `doctor` that starts workers: whether they come up, and find the packages that stages need."""

from __future__ import annotations

import os
import site
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from threading import Timer
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DeployRunnerError, counted
from ..types import Graph, StageNode
from ..usercode.advice import how_to_install
from ..usercode.installed import distributions, normal, search_path, version_in
from .checks import Check

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    from ..api import Pipeline
    from ..engine.execute.fork import ForkServer
    from ..sdk import Stage

__all__ = ["versions", "workers"]

_IMPORT_S = 300
_OURS = "deploy-runner"


class _Need(NamedTuple):
    """The stages that import a module, and the extra that brings it."""

    extra: str
    stages: list[StageNode]


class _Cause(NamedTuple):
    """What an import raised, nothing where the module is missing, and in which file."""

    said: str
    file: str


def workers(pipeline: Pipeline) -> Iterator[Check]:
    """Start a worker of each stage type as a run would, and have it import what its stages need.

    Raises StoreError where the store can't be written.
    """
    from ..engine.execute.fork import ForkServer

    needs = _needs(pipeline.graph)
    kinds: dict[str, list[StageNode]] = {}
    for node in pipeline.graph.stages.values():
        kinds.setdefault(node.uses, []).append(node)
    refused: dict[str, _Cause] = {}
    tried: set[str] = set()
    failed = False
    server = ForkServer(threads=1)
    with pipeline.store.hold():
        for uses, nodes in kinds.items():
            mine = [m for m in needs if m not in tried and any(n.uses == uses for n in needs[m].stages)]
            try:
                refused |= _answer(pipeline, nodes[0], mine, server)
            except DeployRunnerError as error:
                failed = True
                fix = f"deploy-runner run {nodes[0].id} --log shows more"
                yield Check("worker", False, error.message, fix, stages=tuple(nodes))
                server.stop()
                server = ForkServer(threads=1)
            else:
                tried.update(mine)
    server.stop()
    if not failed:
        yield Check("workers", True, f"start, and load {counted(len(kinds), 'stage type')}")
    yield from (Check(module, True, "installed") for module in sorted(tried - refused.keys()))
    for cause in dict.fromkeys(refused.values()):
        alike = [module for module in sorted(refused) if refused[module] == cause]
        for modules in [alike] if cause.said else [[module] for module in alike]:
            yield _refusal(cause, modules, needs)


def _answer(
    pipeline: Pipeline, node: StageNode, modules: Sequence[str], server: ForkServer
) -> dict[str, _Cause]:
    """Return what a worker of this stage can't import: confined, but without parameters and secrets."""
    from ..engine.execute.ask import ask
    from ..engine.execute.readiness import READY

    bare = node._replace(secrets=(), params={}, inputs={})
    limit = Timer(_IMPORT_S, server.stop)
    limit.start()
    try:
        found = ask(
            pipeline.graph, pipeline.planner(), pipeline.store, bare, None,
            {"verb": READY, "modules": "\n".join(modules)},
            environ=pipeline.environ, log=lambda line: None, server=server,
        )  # fmt: skip
    finally:
        limit.cancel()
    return {str(name): _Cause(*why) for name, why in found.items()}


def _needs(graph: Graph) -> dict[str, _Need]:
    needs: dict[str, _Need] = {}
    for node in graph.stages.values():
        cls = _class(node)
        for module in dict.fromkeys((*node.preload, *_modules(cls.packages))):
            needs.setdefault(module, _Need(cls.extra, [])).stages.append(node)
        for module in _imported(node, graph.root):
            needs.setdefault(module, _Need("", [])).stages.append(node)
    return needs


def _class(node: StageNode) -> type[Stage]:
    from ..registry import load_class

    return load_class(node.module, node.class_name, node.stage_dir)


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


def _imported(node: StageNode, root: str) -> Iterator[str]:
    """Yield the modules that the project's code imports when it is itself imported, without its own."""
    import ast
    import sys

    ours = [file for file in node.code if Path(file.path).is_relative_to(root)]
    own = {part for file in ours for part in PurePosixPath(file.name).with_suffix("").parts}
    for file in ours:
        body = ast.parse(Path(file.path).read_bytes()).body if file.name.endswith(".py") else []
        names = [alias.name for part in body if isinstance(part, ast.Import) for alias in part.names]
        names += [str(part.module) for part in body if isinstance(part, ast.ImportFrom) and not part.level]
        tops = {name.partition(".")[0] for name in names}
        yield from sorted(tops - own - sys.stdlib_module_names - {"deploy_runner"})


def _refusal(cause: _Cause, modules: Sequence[str], needs: Mapping[str, _Need]) -> Check:
    """Return the check of modules that fail in one way, with the one command that mends it."""
    stages = {node.id: node for module in modules for node in needs[module].stages}
    extra = next((needs[module].extra for module in modules if needs[module].extra), "")
    by_extra = f"pip install '{_OURS}[{extra}]'" if extra else how_to_install(modules[0])
    if not cause.said:
        return Check(modules[0], False, "missing", by_extra, stages=tuple(stages.values()))
    folder, broken = _package_of(cause.file, modules[0])
    again = how_to_install(broken) if how_to_install(broken).startswith("pip ") else by_extra
    fix = _hide(folder) or again.replace("pip install", "pip install --force-reinstall --no-deps")
    name = broken if broken in modules else modules[0]
    others = [module for module in modules if module != name]
    also = f"; nor can {', '.join(others)} be imported" if others else ""
    return Check(name, False, f"{cause.said} ({cause.file}){also}", fix, stages=tuple(stages.values()))


def _package_of(file: str, module: str) -> tuple[str, str]:
    """Return the folder of the path that a file lies in, and the top-level module that it belongs to."""
    for folder in search_path():
        if file.startswith(f"{folder}{os.sep}"):
            return folder, PurePosixPath(os.path.relpath(file, folder)).parts[0].removesuffix(".py")
    return "", module.partition(".")[0]


def _hide(folder: str) -> str:
    """Return what leaves out a folder of the path that is no part of this Python's installation."""
    if site.ENABLE_USER_SITE and folder and folder == site.getusersitepackages():
        return "export PYTHONNOUSERSITE=1"
    asked = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return f"remove {folder} from PYTHONPATH" if folder in asked else ""


def versions(graph: Graph) -> Iterator[Check]:
    """Check the installed versions against what the extras of these stages ask for, as workers find them."""
    installed: dict[str, list[tuple[str, str]]] = {}
    for folder in search_path():
        for name, metadata in distributions(folder).items():
            installed.setdefault(name, []).append((version_in(metadata).partition(" ")[0], folder))
    for name, (needed, stages) in _required(graph).items():
        found = list(dict.fromkeys(installed.get(name, ())))
        if not found:
            continue
        (version, folder), *others = found
        wrong = next((r for r in needed if not r.contains(version, prereleases=True)), None)
        other = next(((v, place) for v, place in others if v != version), None)
        hidden = f"{version} of {folder} hides {other[0]} of {other[1]}" if other else ""
        if wrong is not None:
            detail = hidden or f"{version} is installed"
            fix = _hide(folder) if hidden else ""
            yield Check(name, False, f"{detail}, and {wrong} is required",
                        fix or f"pip install '{name}{wrong}'", stages=tuple(stages.values()))  # fmt: skip
        elif hidden:
            fix = _hide(folder)
            yield Check(name, True, hidden + (f" ({fix} to use that)" if fix else ""), note=True)


def _required(graph: Graph) -> dict[str, tuple[list[SpecifierSet], dict[str, StageNode]]]:
    """Return what we and the extras of these stages require: name → versions, and the stages concerned."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    extras: dict[str, list[StageNode]] = {"": list(graph.stages.values())}
    for node in graph.stages.values():
        if extra := _class(node).extra:
            extras.setdefault(extra, []).append(node)
    try:
        lines = [Requirement(line) for line in requires(_OURS) or ()]
    except PackageNotFoundError:  # Run from its source, without an installation.
        return {}
    found: dict[str, tuple[list[SpecifierSet], dict[str, StageNode]]] = {}
    for extra, nodes in extras.items():
        for requirement in _of_extra(extra, lines):
            specifiers, stages = found.setdefault(normal(requirement.name), ([], {}))
            specifiers.append(requirement.specifier)
            stages |= {node.id: node for node in nodes}
    return found


def _of_extra(extra: str, lines: Sequence[Requirement]) -> Iterator[Requirement]:
    for line in lines:
        by_extra = line.marker is not None and "extra" in str(line.marker)
        applies = line.marker is None or line.marker.evaluate({"extra": extra})
        if not applies or by_extra != bool(extra):
            continue
        if normal(line.name) == normal(_OURS):
            for other in line.extras:
                yield from _of_extra(other, lines)
        else:
            yield line
