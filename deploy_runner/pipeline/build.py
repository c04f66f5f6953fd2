"""A pipeline's tree → its compiled graph; every problem of the file is gathered first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ..errors import Problem, SpecError, StageError, closest
from ..registry import Registry
from ..sdk import StageParams
from ..types import Graph, Json, Mark, Resources, SourceFile, StageNode
from ..usercode import loading
from ..usercode.advice import how_to_install
from . import interface
from .drafts import Draft, Enough, Ground
from .expressions import Refused, Scope, Variables, resolve, secret_name, shown_cycle
from .graph import find_cycle, topological_order
from .inputs import find_inputs
from .loader import Node, plain
from .matrices import expand_all
from .misfits import find_mark, problems_of
from .overlay import Document
from .refusals import credentials_in_the_open, stores_file
from .spec import parse_duration, parse_size
from .structure import (
    add_draft,
    make_scope,
    read_cache,
    read_executor,
    read_structure,
    read_target,
)

__all__ = ["build"]

_MOST_WRONG = 20


def build(
    document: Document, path: Path, environ: Mapping[str, str], registry: Registry
) -> tuple[Graph, frozenset[str]]:
    """Return the compiled pipeline and the environment variables that it depends on.

    Raises SpecError with all problems.
    """
    ground = Ground(document, path, environ, registry)
    graph = None
    with suppress(Enough):
        graph = _graph(ground)
    if ground.problems:
        raise SpecError(list(dict.fromkeys(ground.problems)))
    assert graph is not None
    return graph, frozenset(ground.env_names)


def _graph(ground: Ground) -> Graph | None:
    ground.problems += credentials_in_the_open(ground.root, ground.environ)
    if ground.problems:
        return None  # The sentences on other problems would print the values.
    spec = read_structure(ground)
    if spec is None:
        return None
    ground.max_instances = spec.max_instances
    scope = make_scope(ground, spec)
    variables = scope.variables
    assert isinstance(variables, Variables)
    values = variables.all()
    target = read_target(ground, scope)
    cache = read_cache(ground, scope)
    executor = read_executor(ground, spec, scope)
    for name, stage in spec.stages.items():
        add_draft(ground, name, stage)
    expand_all(ground, scope)
    nodes: dict[str, StageNode] = {}
    for draft in ground.drafts.values():
        nodes |= {node.id: node for node in _instances(ground, draft, scope, target)}
    _check_new_variables(ground, variables.used, values)
    order = _order(ground, nodes)
    return Graph(
        name=spec.name,
        root=str(ground.folder),
        pipeline=str(ground.path),
        stages={id_: nodes[id_] for id_ in order},
        vars=values,
        origins=ground.document.origins,
        target=target,
        live=bool(target.get("live")),
        cache=cache,
        executor=executor,
    )


def _check_new_variables(ground: Ground, used: set[str], values: Mapping[str, Json]) -> None:
    """Refuse a variable of `--set`, or one of an overlay spelled much like another, that changes nothing."""
    declared = ground.document.variables
    for name in values.keys() - used - declared:
        mark = ground.root.value["vars"].child_marks(name)
        near = closest(name, used | declared)
        if near or mark.file.startswith("--set "):
            ground.say(mark, f"nothing refers to vars.{name}", near)


class _Fitted(NamedTuple):
    """Parameters that fit their stage type, and what they need."""

    given: StageParams
    params: dict[str, Json]
    code: tuple[SourceFile, ...]
    packages: tuple[str, ...]
    resources: Resources
    secrets: tuple[str, ...]
    weight: int


def _instances(ground: Ground, draft: Draft, scope: Scope, target: dict[str, Json]) -> Iterator[StageNode]:
    """Yield the nodes of a stage. What its instances have in common is found once."""
    env, needs, resources = _env(ground, draft, scope), _needs(ground, draft), _resources(ground, draft)
    cls, kind = draft.type.cls, draft.type
    mark = ground.root.value["stages"].child_marks(draft.name)
    names = {name for values in draft.instances.values() for name in values}
    alike: _Fitted | None = None
    wrong = 0
    for id_, matrix in draft.instances.items():
        before = len(ground.problems)
        own = Scope(
            scope.name, scope.variables, scope.env, matrix, allow_secrets=True, others=names,
            budget=scope.budget,
        )  # fmt: skip
        fitted = alike or _fitted(ground, draft, own, resources)
        alike = None if own.varies else fitted
        inputs = find_inputs(ground, draft, matrix, own)
        ground.link(draft, mark, len(inputs) + len(needs))
        if fitted is not None:
            _check_inputs(ground, draft, mark, fitted.given, inputs)
        if fitted is None or len(ground.problems) > before:
            wrong += 1
            if wrong == _MOST_WRONG:
                return  # The others are wrong in the same way.
            continue
        _weigh(ground, mark, scope, fitted)
        yield StageNode(
            id=id_,
            base=draft.name,
            uses=draft.spec.uses,
            matrix=matrix,
            params=fitted.params,
            inputs=inputs,
            outputs=draft.outputs,
            needs=needs,
            env=env,
            secrets=fitted.secrets,
            module=kind.module,
            class_name=cls.__name__,
            stage_dir=str(kind.stage_dir),
            implementation=kind.implementation,
            code=fitted.code,
            packages=fitted.packages,
            facets=cls.facets + (("gpu",) if fitted.resources.gpu else ()),
            preload=cls.preload,
            network=cls.network,
            converges=cls.converges,
            trust=draft.spec.trust,
            resources=fitted.resources,
            target=target if cls.network else {},
            mark=mark,
            lineage=cls.lineage,
            max_parallel=draft.spec.max_parallel or 0,
        )


def _check_inputs(
    ground: Ground, draft: Draft, mark: Mark, params: StageParams, inputs: Mapping[str, object]
) -> None:
    try:
        params.check_inputs({name.partition("/")[0] for name in inputs})
    except StageError as error:
        ground.say(mark, f"stage {draft.name!r} ({draft.spec.uses}): {error.message}", error.fix)


def _fitted(ground: Ground, draft: Draft, scope: Scope, resources: Resources) -> _Fitted | None:
    params = _params(ground, draft, scope)
    if params is None:
        return None
    code, packages = _code(ground, draft, params)
    gpu, dumped = max(params.gpus_needed(), resources.gpu), params.model_dump(mode="json")
    try:
        with_secrets = _with_secrets(dumped)
    except ValueError as error:
        ground.say(find_mark(draft.node, ("with",)), str(error), "write a secret as ${{ secrets.NAME }}")
        return None
    return _Fitted(
        params,
        with_secrets,
        code,
        tuple(dict.fromkeys((*draft.type.cls.packages, *draft.type.packages, *packages))),
        resources._replace(gpu=gpu),
        tuple(sorted(scope.secrets)),
        len(json.dumps(dumped)),
    )


def _weigh(ground: Ground, mark: Mark, scope: Scope, fitted: _Fitted) -> None:
    """Count the parameters of an instance against what all of the pipeline may be."""
    try:
        scope.budget.spend(fitted.weight)
    except Refused as error:
        ground.say(mark, str(error))
        raise Enough from None


def _params(ground: Ground, draft: Draft, scope: Scope) -> StageParams | None:
    model = draft.type.cls.Params
    before = len(ground.problems)
    written = draft.node.value.get("with") or Node({}, draft.node.mark)
    node = resolve(written, scope, ground.problems)
    if len(ground.problems) > before:
        return None
    data = plain(node)
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        if "with" not in draft.node.value:
            node = Node({}, ground.root.value["stages"].child_marks(draft.name))
        what = f"`with` of stage {draft.name!r} ({draft.spec.uses})"
        ground.problems += problems_of(error, data, node, what, model)
        return None


def _env(ground: Ground, draft: Draft, scope: Scope) -> dict[str, str]:
    for index, name in enumerate(draft.spec.env):
        if name not in ground.env_names:
            mark = find_mark(draft.node, ("env", index))
            ground.say(mark, f"{name} is not declared under the pipeline's `env:`",
                      closest(name, scope.env) or f"env: {{{name}: null}}")  # fmt: skip
    return {name: scope.env[name] for name in draft.spec.env if name in scope.env}


def _needs(ground: Ground, draft: Draft) -> tuple[str, ...]:
    ids: list[str] = []
    for index, name in enumerate(draft.spec.needs):
        found = ground.drafts.get(name)
        if found is not None:
            ids += found.instances
        elif name not in ground.broken:
            mark = find_mark(draft.node, ("needs", index))
            ground.say(mark, f"there is no stage {name!r}", closest(name, ground.drafts))
    return tuple(ids)


def _resources(ground: Ground, draft: Draft) -> Resources:
    spec = draft.spec
    memory, timeout = 0, 0.0
    try:
        memory = parse_size(spec.resources.memory)
    except ValueError as error:
        ground.say(find_mark(draft.node, ("resources", "memory")), str(error))
    try:
        timeout = parse_duration(spec.timeout)
    except ValueError as error:
        ground.say(find_mark(draft.node, ("timeout",)), str(error))
    for name, amount in spec.resources.custom.items():
        if amount <= 0:
            ground.say(find_mark(draft.node, ("resources", "custom", name)),
                      f"the amount of {name} must be more than 0, not {amount:g}")  # fmt: skip
    return Resources(spec.resources.cpu, memory, timeout, spec.resources.gpu, spec.resources.custom)


def _code(ground: Ground, draft: Draft, params: BaseModel) -> tuple[tuple[SourceFile, ...], list[str]]:
    """Return the files that the stage's code references need, and the installed distributions."""
    files: dict[str, Path] = {}
    packages: list[str] = []
    for path, code in interface.code_references(params):
        mark = find_mark(draft.node, ("with", *path))
        try:
            found = _closure(ground, code)
        except ValueError as error:
            ground.say(mark, str(error))
        except FileNotFoundError:
            ground.say(mark, f"{loading.split(code)[0]} does not exist in {ground.folder}")
        except ModuleNotFoundError as error:
            name = str(error.name)
            ground.say(mark, f"the module {name} is not installed, nor a file of {ground.folder}",
                      "" if "." in name else how_to_install(name))  # fmt: skip
        except SyntaxError as error:
            ground.problems.append(Problem(
                f"not valid Python: {error.msg}", str(error.filename), error.lineno or 1,
                error.offset or 1))  # fmt: skip
        else:
            files |= found.files
            packages += found.distributions
    return tuple(SourceFile(name, str(files[name])) for name in sorted(files)), packages


def _closure(ground: Ground, code: str) -> loading.Closure:
    if code not in ground.closures:
        place, name = loading.split(code)
        closure = loading.import_closure(ground.folder, place)
        for file, path in closure.files.items():
            if stores_file(path, ground.folder, ground.environ):
                raise ValueError(f"{file} belongs to the store and can't be project code")
        _require_name(place, name.partition(".")[0], closure)
        ground.closures[code] = closure
        ground.registry.absent.update(closure.absent)
    return ground.closures[code]


def _require_name(place: str, name: str, closure: loading.Closure) -> None:
    """Raise ValueError where the source says that a file or module doesn't define a name."""
    stem = place.replace(".", "/")
    sources = [place] if loading.is_file(place) else [f"{stem}.py", f"{stem}/__init__.py"]
    for source in sources:
        if source in closure.files:
            defined = loading.defined_names(closure.files[source])
            if not {name, "*", "__getattr__"} & set(defined):
                hint = closest(name, defined)
                raise ValueError(f"{place} defines no {name!r}" + (f" ({hint})" if hint else ""))


def _order(ground: Ground, nodes: dict[str, StageNode]) -> list[str]:
    upstream = {id_: [need for need in node.upstream if need in nodes] for id_, node in nodes.items()}
    order = topological_order(upstream)
    if len(order) < len(nodes):
        cycle = find_cycle(upstream)
        shown = shown_cycle(cycle[::-1])
        ground.say(nodes[cycle[0]].mark, f"the stages depend on each other in a cycle: {shown}",
                   "remove one of these references, or an entry of `needs`")  # fmt: skip
    return order


def _with_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        if "$secret" in value:
            raise ValueError("the name $secret is reserved")
        return {name: _with_secrets(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_with_secrets(child) for child in value]
    if isinstance(value, str) and (name := secret_name(value)):
        return {"$secret": name}
    return value
