"""A pipeline's shape, variables, target and stages; what doesn't fit is said and left out."""

from __future__ import annotations

from pydantic import ValidationError

from ..errors import SpecError, closest
from ..types import Executor, Json, RemoteSpec
from .drafts import Draft, Ground
from .expressions import Budget, Scope, Variables, resolve
from .loader import Node, plain
from .misfits import find_mark, problems_of
from .misplaced import misplaced, of_stage
from .outputs import find_outputs
from .spec import (
    STAGE_ID,
    CacheSpec,
    ExecutorSpec,
    PipelineSpec,
    StageSpec,
    TargetSpec,
    parse_duration,
)

__all__ = ["add_draft", "make_scope", "read_cache", "read_executor", "read_structure", "read_target"]

_CHARACTERS = 8000
"""What the references may expand to, for each stage that a pipeline may have."""
_LONGEST_NAME = 100


_ENV_OF_A_STAGE = (
    "list the names: `env: [NAME]`; the pipeline's own `env: {NAME: null}` takes one from the environment"
)


def read_structure(ground: Ground) -> PipelineSpec | None:
    """Validate the whole structure; stages that don't fit are reported and left out."""
    data = plain(ground.root)
    assert isinstance(data, dict)
    ground.problems += misplaced(ground.root)
    stages = data.get("stages")
    if isinstance(stages, dict):
        _check_stage_shapes(ground, stages)
    _check_executor(ground, data)
    try:
        spec = PipelineSpec.model_validate(data)
    except ValidationError as error:
        ground.problems += problems_of(error, data, ground.root, "the pipeline", PipelineSpec)
        # What is wrong is said; without it the rest can still be checked.
        wrong = {e["loc"][0] for e in error.errors()} - {"stages"}
        rest = {k: v for k, v in data.items() if k not in wrong}
        root = ground.root
        ground.root = Node({k: v for k, v in root.value.items() if k not in wrong}, root.mark, root.keys)
        if isinstance(stages, dict):
            rest = {"version": 1, "name": "", **rest, "stages": stages}
        try:
            spec = PipelineSpec.model_validate(rest)
        except ValidationError:
            return None
    if not spec.stages and not ground.broken:
        ground.say(ground.root.child_marks("stages"), "the pipeline has no stages",
                   "add one; `deploy-runner stages` lists the types")  # fmt: skip
    return spec


def _check_stage_shapes(ground: Ground, stages: dict[str, Json]) -> None:
    tree = ground.root.value["stages"]
    for name in list(stages):
        node = tree.value[name]
        if not STAGE_ID.match(name):
            ground.say(tree.child_marks(name), f"{name!r} is not a valid stage name",
                      "use letters, digits, _ and -")  # fmt: skip
        elif len(name) > _LONGEST_NAME:
            ground.say(tree.child_marks(name), f"a stage's name has at most {_LONGEST_NAME} characters")
        if next(of_stage(name, node), None):  # It is said.
            ground.broken.add(name)
            del stages[name]
            continue
        try:
            StageSpec.model_validate(stages[name])
        except ValidationError as error:
            found = problems_of(error, stages[name], node, f"stage {name!r}", StageSpec)
            # A stage without a type is most likely another one's name in an overlay, misspelled.
            near = closest(name, [other for other in tree.value if other != name])
            env = node.value.get("env") if isinstance(node.value, dict) else None
            wrong = env.mark if env is not None and isinstance(env.value, dict) else None
            for problem in found:
                untyped = problem.message.startswith(f"stage {name!r} needs 'uses'")
                fix = near if untyped else _ENV_OF_A_STAGE if problem[1:4] == wrong else problem.fix
                ground.problems.append(problem._replace(fix=fix))
            ground.broken.add(name)
            del stages[name]


def _check_executor(ground: Ground, data: dict[str, Json]) -> None:
    try:
        ExecutorSpec.model_validate(data.get("executor", {}))
    except ValidationError as error:
        node = ground.root.value["executor"]
        ground.problems += problems_of(error, data["executor"], node, "the executor", ExecutorSpec)
        del data["executor"]


def make_scope(ground: Ground, spec: PipelineSpec) -> Scope:
    """Return what references of the whole pipeline may name."""
    env: dict[str, str] = {}
    for name, default in spec.env.items():
        ground.env_names.add(name)
        value = ground.environ.get(name, default)
        if value is None:
            mark = find_mark(ground.root, ("env", name), key=True)
            ground.say(mark, f"the environment variable {name} is not set", f"export {name}=…")
        else:
            env[name] = value
    budget = Budget(_CHARACTERS * spec.max_instances)
    scope = Scope(spec.name, lambda path: None, env, budget=budget)
    scope.variables = Variables(ground.root.value.get("vars"), scope, ground.problems)
    return scope


def read_target(ground: Ground, scope: Scope) -> dict[str, Json]:
    """Return where pushes go."""
    node = ground.root.value.get("target")
    if node is None:
        return TargetSpec().model_dump(mode="json")
    data = plain(resolve(node, scope, ground.problems))
    for name, value in data.items() if isinstance(data, dict) else ():
        # Mappings belong to the pushes, which judge what is in them.
        near = "" if isinstance(value, dict) else closest(name, TargetSpec.model_fields)
        if near and name not in TargetSpec.model_fields:
            ground.say(find_mark(node, (name,), key=True), f"the target has no {name!r}", near)
    try:
        return TargetSpec.model_validate(data).model_dump(mode="json")
    except ValidationError as error:
        ground.problems += problems_of(error, data, node, "the target", TargetSpec)
        return {}


def read_cache(ground: Ground, scope: Scope) -> RemoteSpec:
    """Return the shared cache; its `url` is empty where there is none."""
    node = ground.root.value.get("cache")
    spec = CacheSpec()
    if node is not None:
        data = plain(resolve(node, scope, ground.problems))
        try:
            spec = CacheSpec.model_validate(data)
        except ValidationError as error:
            if data != plain(node):  # Else `read_structure` has said it.
                ground.problems += problems_of(error, data, node, "the cache", CacheSpec)
    timeout_s = parse_duration(spec.timeout)
    return RemoteSpec(spec.remote, spec.push, spec.required, tuple(spec.public_keys), timeout_s)


def read_executor(ground: Ground, spec: PipelineSpec, scope: Scope) -> Executor:
    """Return where stages run; a reference in the address is resolved."""
    name, address, autoscaling = spec.executor.name, spec.executor.address, spec.executor.autoscaling
    if not address:
        return Executor(name, "", autoscaling)
    node = ground.root.value["executor"].value["address"]
    if name != "ray":
        ground.say(node.mark, f"the executor {name} has no address", "add `name: ray`")
    return Executor(name, str(resolve(node, scope, ground.problems).value), autoscaling)


def add_draft(ground: Ground, name: str, spec: StageSpec) -> None:
    """Begin a stage of a known type."""
    node = ground.root.value["stages"].value[name]
    mark = find_mark(node, ("uses",))
    try:
        found = ground.registry.get(spec.uses)
        if found is None:
            names = ground.registry.names()
            fix = closest(spec.uses, names) or "`deploy-runner stages` lists them"
            ground.say(mark, f"there is no stage type {spec.uses!r}", fix)
    except SpecError as error:
        ground.problems += error.problems
        found = None
    if found is None:
        ground.broken.add(name)
        return
    draft = Draft(name, node, spec, found)
    draft.outputs = find_outputs(ground, draft)
    ground.drafts[name] = draft
