"""A pipeline's tree → its compiled graph; every problem of the file is gathered first.

The module is long because one builder gathers the problems of all parts: structure, matrix,
parameters, inputs, order, in this sequence.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import Problem, SpecError
from ..registry import Registry, StageType
from ..types import (
    Graph,
    Json,
    Kind,
    Mark,
    OutputSpec,
    PathSource,
    RefSource,
    Resources,
    Scalar,
    Source,
    SourceFile,
    StageNode,
)
from ..usercode import loading
from . import interface
from .expressions import OutputRef, Scope, Variables, closest, parse_output, resolve, secret_name
from .graph import find_cycle, topological_order
from .loader import Node, plain
from .overlay import Document
from .refusals import credentials_in_the_open, stores_file
from .spec import (
    STAGE_ID,
    PipelineSpec,
    StageSpec,
    TargetSpec,
    find_mark,
    parse_duration,
    parse_size,
    problems_of,
)

__all__ = ["build"]

_MATRIX_OF = re.compile(r"\$\{\{\s*stages\.([A-Za-z_][\w-]*)\.matrix\s*\}\}\Z")

_OF_THE_STORE = {
    "inside": ("is the store's own, which is never an input", "name the output of a stage instead"),
    "around": ("holds the store, which is never an input", "name the folders in it that the stage reads"),
}


def build(
    document: Document, path: Path, environ: Mapping[str, str], registry: Registry
) -> tuple[Graph, frozenset[str]]:
    """Return the compiled pipeline and the environment variables that it depends on.

    Raises SpecError with all problems.
    """
    builder = _Builder(document, path, environ, registry)
    graph = builder.build()
    if builder.problems:
        raise SpecError(list(dict.fromkeys(builder.problems)))
    assert graph is not None
    return graph, frozenset(builder.env_names)


@dataclass(slots=True)
class _Draft:
    """A stage on its way to a StageNode."""

    name: str
    node: Node
    spec: StageSpec
    type: StageType
    axes: dict[str, list[Scalar]] = field(default_factory=dict)
    instances: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    outputs: dict[str, OutputSpec] = field(default_factory=dict)


class _Builder:
    def __init__(
        self, document: Document, path: Path, environ: Mapping[str, str], registry: Registry
    ) -> None:
        self.problems: list[Problem] = []
        self.env_names: set[str] = set()
        self._document = document
        self._root = document.root
        self._path = path
        self._folder = path.absolute().parent
        self._environ = environ
        self._registry = registry
        self._drafts: dict[str, _Draft] = {}
        self._broken: set[str] = set()
        self._closures: dict[str, loading.Closure] = {}

    def build(self) -> Graph | None:
        self.problems += credentials_in_the_open(self._root, self._environ)
        if self.problems:
            return None  # The sentences on other problems would print the values.
        spec = self._structure()
        if spec is None:
            return None
        scope = self._scope(spec)
        variables = scope.variables
        assert isinstance(variables, Variables)
        values = variables.all()
        target = self._target(scope)
        for name, stage in spec.stages.items():
            self._draft(name, stage)
        for draft in self._drafts.values():
            self._expand(draft, scope)
        nodes: dict[str, StageNode] = {}
        for draft in self._drafts.values():
            for id_, matrix in draft.instances.items():
                node = self._instance(draft, id_, matrix, scope, target)
                if node is not None:
                    nodes[id_] = node
        order = self._order(nodes)
        return Graph(
            name=spec.name,
            root=str(self._folder),
            pipeline=str(self._path),
            stages={id_: nodes[id_] for id_ in order},
            vars=values,
            origins=self._document.origins,
            target=target,
            live=bool(target.get("live")),
        )

    # Structure -------------------------------------------------------------------------------

    def _say(self, mark: Mark, message: str, fix: str = "") -> None:
        self.problems.append(Problem(message, mark.file, mark.line, mark.column, fix))

    def _structure(self) -> PipelineSpec | None:
        """Validate the whole structure; stages that don't fit are reported and left out."""
        data = plain(self._root)
        assert isinstance(data, dict)
        stages = data.get("stages")
        if isinstance(stages, dict):
            self._check_stage_shapes(stages)
        try:
            spec = PipelineSpec.model_validate(data)
        except ValidationError as error:
            known = PipelineSpec.model_fields
            self.problems += problems_of(error, self._root, "the pipeline", known)
            # What is wrong is said; without it the rest can still be checked.
            rest = {k: v for k, v in data.items() if k not in {e["loc"][0] for e in error.errors()}}
            if isinstance(stages, dict):
                rest = {"version": 1, "name": "", **rest, "stages": stages}
            try:
                spec = PipelineSpec.model_validate(rest)
            except ValidationError:
                return None
        if not spec.stages and not self._broken:
            self._say(self._root.child_marks("stages"), "the pipeline has no stages")
        return spec

    def _check_stage_shapes(self, stages: dict[str, Json]) -> None:
        tree = self._root.value["stages"]
        known = {f.alias or n: f for n, f in StageSpec.model_fields.items()}
        for name in list(stages):
            node = tree.value[name]
            if not STAGE_ID.match(name):
                self._say(tree.child_marks(name), f"{name!r} can't be a stage's name",
                          "use letters, digits, _ and -")  # fmt: skip
            try:
                StageSpec.model_validate(stages[name])
            except ValidationError as error:
                self.problems += problems_of(error, node, f"stage {name!r}", known)
                self._broken.add(name)
                del stages[name]

    def _scope(self, spec: PipelineSpec) -> Scope:
        env: dict[str, str] = {}
        for name, default in spec.env.items():
            self.env_names.add(name)
            value = self._environ.get(name, default)
            if value is None:
                mark = find_mark(self._root, ("env", name), key=True)
                self._say(mark, f"the environment variable {name} is not set", f"export {name}=…")
            else:
                env[name] = value
        scope = Scope(spec.name, lambda path, mark: None, env)
        scope.variables = Variables(self._root.value.get("vars"), scope, self.problems)
        return scope

    def _target(self, scope: Scope) -> dict[str, Json]:
        node = self._root.value.get("target")
        if node is None:
            return TargetSpec().model_dump(mode="json")
        data = plain(resolve(node, scope, self.problems))
        try:
            return TargetSpec.model_validate(data).model_dump(mode="json")
        except ValidationError as error:
            self.problems += problems_of(error, node, "the target", TargetSpec.model_fields)
            return {}

    def _draft(self, name: str, spec: StageSpec) -> None:
        node = self._root.value["stages"].value[name]
        mark = find_mark(node, ("uses",))
        try:
            found = self._registry.get(spec.uses)
            if found is None:
                names = self._registry.names()
                fix = closest(spec.uses, names) or "`deploy-runner stages` lists them"
                self._say(mark, f"there is no stage type {spec.uses!r}", fix)
        except SpecError as error:
            self.problems += error.problems
            found = None
        if found is None:
            self._broken.add(name)
            return
        draft = _Draft(name, node, spec, found)
        draft.outputs = self._outputs(draft)
        self._drafts[name] = draft

    def _outputs(self, draft: _Draft) -> dict[str, OutputSpec]:
        outputs = dict(interface.output_specs(draft.type.cls))
        for name, path in draft.spec.outputs.items():
            mark = find_mark(draft.node, ("outputs", name), key=True)
            if not interface.is_open(draft.type.cls.Outputs):
                self._say(mark, f"the outputs of {draft.spec.uses} have names of their own",
                          f"they are {', '.join(outputs)}")  # fmt: skip
            elif not name.isidentifier() or _leaves_project(path):
                self._say(mark, f"{name}: {path!r} is not a name and a path inside the outputs")
            else:
                kind: Kind = "folder" if path.endswith("/") else "file"
                outputs[name] = OutputSpec(path.rstrip("/"), kind)
        return outputs

    # Matrix ----------------------------------------------------------------------------------

    def _expand(self, draft: _Draft, scope: Scope) -> None:
        axes = self._axes(draft, scope, [])
        draft.axes = axes
        if not axes:
            draft.instances = {draft.name: {}}
            return
        for values in product(*axes.values()):
            id_ = f"{draft.name}[{','.join(_label(v) for v in values)}]"
            if id_ in draft.instances:
                mark = find_mark(draft.node, ("matrix",))
                self._say(mark, f"the matrix of {draft.name!r} gives {id_} twice")
            draft.instances[id_] = dict(zip(axes, values, strict=True))

    def _axes(self, draft: _Draft, scope: Scope, seen: list[str]) -> dict[str, list[Scalar]]:
        node = draft.node.value.get("matrix")
        if node is None:
            return {}
        if isinstance(node.value, str):
            found = _MATRIX_OF.match(node.value.strip())
            source = self._drafts.get(found.group(1)) if found else None
            if found and found.group(1) in self._broken:
                return {}
            if source is None or draft.name in seen:
                self._say(node.mark, f"{node.value!r} is not a mapping of axes to values",
                          "or ${{ stages.NAME.matrix }} of another stage")  # fmt: skip
                return {}
            return self._axes(source, scope, [*seen, draft.name])
        resolved = plain(resolve(node, scope, self.problems))
        assert isinstance(resolved, dict)
        return {name: self._axis(node, name, values) for name, values in resolved.items()}

    def _axis(self, node: Node, name: str, values: Json) -> list[Scalar]:
        mark = find_mark(node, (name,))
        if not isinstance(values, list) or not values:
            self._say(mark, f"the matrix axis {name!r} must be a list of values")
            return [""]
        if any(isinstance(value, (list, dict)) for value in values):
            self._say(mark, f"the values of the matrix axis {name!r} must not be collections")
            return [""]
        return values  # type: ignore[return-value]

    # One instance ----------------------------------------------------------------------------

    def _instance(
        self,
        draft: _Draft,
        id_: str,
        matrix: dict[str, Scalar],
        scope: Scope,
        target: dict[str, Json],
    ) -> StageNode | None:
        own = Scope(scope.name, scope.variables, scope.env, matrix, allow_secrets=True)
        params = self._params(draft, own)
        inputs = self._inputs(draft, matrix, own)
        env = self._env(draft, scope)
        if params is None:
            return None
        cls, kind = draft.type.cls, draft.type
        code, packages = self._code(draft, params)
        return StageNode(
            id=id_,
            base=draft.name,
            uses=draft.spec.uses,
            matrix=matrix,
            params=_with_secrets(params.model_dump(mode="json")),
            inputs=inputs,
            outputs=draft.outputs,
            needs=self._needs(draft),
            env=env,
            secrets=tuple(sorted(own.secrets)),
            module=kind.module,
            class_name=cls.__name__,
            stage_dir=str(kind.stage_dir),
            implementation=kind.implementation,
            code=code,
            packages=tuple(dict.fromkeys((*cls.packages, *kind.packages, *packages))),
            facets=cls.facets,
            preload=cls.preload,
            network=cls.network,
            converges=cls.converges,
            trust=draft.spec.trust,
            resources=self._resources(draft),
            target=target if cls.network else {},
            mark=self._root.value["stages"].child_marks(draft.name),
            lineage=cls.lineage,
        )

    def _params(self, draft: _Draft, scope: Scope) -> BaseModel | None:
        model = draft.type.cls.Params
        before = len(self.problems)
        written = draft.node.value.get("with") or Node({}, draft.node.mark)
        node = resolve(written, scope, self.problems)
        if len(self.problems) > before:
            return None
        try:
            return model.model_validate_json(json.dumps(plain(node)))
        except ValidationError as error:
            if "with" not in draft.node.value:
                node = Node({}, self._root.value["stages"].child_marks(draft.name))
            what = f"`with` of stage {draft.name!r} ({draft.spec.uses})"
            self.problems += problems_of(error, node, what, model.model_fields)
            return None

    def _env(self, draft: _Draft, scope: Scope) -> dict[str, str]:
        for index, name in enumerate(draft.spec.env):
            if name not in self.env_names:
                mark = find_mark(draft.node, ("env", index))
                self._say(mark, f"{name} is not declared under the pipeline's `env:`",
                          closest(name, list(scope.env)) or f"env: {{{name}: null}}")  # fmt: skip
        return {name: scope.env[name] for name in draft.spec.env if name in scope.env}

    def _needs(self, draft: _Draft) -> tuple[str, ...]:
        ids: list[str] = []
        for index, name in enumerate(draft.spec.needs):
            found = self._drafts.get(name)
            if found is not None:
                ids += found.instances
            elif name not in self._broken:
                mark = find_mark(draft.node, ("needs", index))
                self._say(mark, f"there is no stage {name!r}", closest(name, list(self._drafts)))
        return tuple(ids)

    def _resources(self, draft: _Draft) -> Resources:
        spec = draft.spec
        memory, timeout = 0, 0.0
        try:
            memory = parse_size(spec.resources.memory)
        except ValueError as error:
            self._say(find_mark(draft.node, ("resources", "memory")), str(error))
        try:
            timeout = parse_duration(spec.timeout)
        except ValueError as error:
            self._say(find_mark(draft.node, ("timeout",)), str(error))
        return Resources(spec.resources.cpu, memory, timeout)

    def _code(self, draft: _Draft, params: BaseModel) -> tuple[tuple[SourceFile, ...], list[str]]:
        """Return the files that the stage's code references need, and the installed distributions."""
        files: dict[str, Path] = {}
        packages: list[str] = []
        for path, code in interface.code_references(params):
            mark = find_mark(draft.node, ("with", *path))
            try:
                found = self._closure(code)
            except ValueError as error:
                self._say(mark, str(error))
            except FileNotFoundError:
                self._say(mark, f"{loading.code_file(code)} does not exist in {self._folder}")
            except SyntaxError as error:
                self.problems.append(Problem(
                    f"not valid Python: {error.msg}", str(error.filename), error.lineno or 1,
                    error.offset or 1))  # fmt: skip
            else:
                files |= found.files
                packages += found.distributions
        return tuple(SourceFile(name, str(files[name])) for name in sorted(files)), packages

    def _closure(self, code: str) -> loading.Closure:
        if code not in self._closures:
            path, name = loading.split(code)
            closure = loading.import_closure(self._folder, path)
            for file, place in closure.files.items():
                if stores_file(place, self._folder, self._environ):
                    raise ValueError(f"{file} is the store's own, which is no code of a project")
            defined = loading.defined_names(closure.files[path])
            if name not in defined:
                raise ValueError(f"{path} defines no {name!r}" + (
                    f" ({hint})" if (hint := closest(name, defined)) else ""))  # fmt: skip
            self._closures[code] = closure
            self._registry.absent.update(closure.absent)
        return self._closures[code]

    # Inputs ----------------------------------------------------------------------------------

    def _inputs(self, draft: _Draft, matrix: dict[str, Scalar], scope: Scope) -> dict[str, Source]:
        shapes = interface.input_shapes(draft.type.cls)
        node = draft.node.value.get("inputs") or Node({}, draft.node.mark)
        flat: dict[str, Source] = {}
        for name, value in node.value.items():
            shape = shapes.get(name)
            if shape is None and not interface.is_open(draft.type.cls.Inputs):
                fix = closest(name, list(shapes)) or f"it has {', '.join(shapes) or 'none'}"
                what = f"stage {draft.name!r} ({draft.spec.uses})"
                self._say(node.child_marks(name), f"{what} has no input {name!r}", fix)
                continue
            shape = shape or interface.InputShape("one", frozenset(("file", "folder")), True, "")
            flat |= self._input(name, value, shape, matrix, scope)
        for name, shape in shapes.items():
            if shape.required and name not in node.value:
                said = f": {shape.description}" if shape.description else ""
                mark = self._root.value["stages"].child_marks(draft.name)
                message = f"stage {draft.name!r} ({draft.spec.uses}) needs the input {name!r}{said}"
                self._say(mark, message)
        return flat

    def _input(
        self,
        name: str,
        node: Node,
        shape: interface.InputShape,
        matrix: dict[str, Scalar],
        scope: Scope,
    ) -> dict[str, Source]:
        if shape.container == "one":
            found = self._sources(node, matrix, scope, many=False)
            flat = {name: found[0][1]} if found else {}
        else:
            flat = self._members(name, node, shape, matrix, scope)
        for source in flat.values():
            self._check_kind(source, shape)
        return flat

    def _members(
        self,
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
            for label, source in self._sources(child, matrix, scope, many=True):
                instance = label[label.find("[") :] if "[" in label else ""
                member = label if key is None else f"{key}{instance}"
                flat[f"{name}/{len(flat) if shape.container == 'list' else member}"] = source
        return flat

    def _sources(
        self, node: Node, matrix: dict[str, Scalar], scope: Scope, *, many: bool
    ) -> list[tuple[str, Source]]:
        """Return (label, source) of one written input; a fan-in gives several."""
        if not isinstance(node.value, str):
            self._say(node.mark, "an input is a path, or the output of a stage, as a string")
            return []
        ref = parse_output(node.value)
        if ref is not None:
            return self._referenced(ref, node, matrix, many=many)
        before = len(self.problems)
        path = resolve(node, scope, self.problems).value
        if len(self.problems) > before:
            return []
        source = self._path_source(str(path), node)
        return [(Path(source.path).stem, source)] if source else []

    def _referenced(
        self, ref: OutputRef, node: Node, matrix: dict[str, Scalar], *, many: bool
    ) -> list[tuple[str, Source]]:
        draft = self._drafts.get(ref.stage)
        if draft is None:
            if ref.stage not in self._broken:
                fix = closest(ref.stage, list(self._drafts))
                self._say(node.mark, f"there is no stage {ref.stage!r}", fix)
            return []
        spec = draft.outputs.get(ref.output)
        if spec is None:
            fix = closest(ref.output, list(draft.outputs)) or f"it has {', '.join(draft.outputs)}"
            self._say(node.mark, f"stage {ref.stage!r} has no output {ref.output!r}", fix)
            return []
        ids = self._matching(draft, ref, node, matrix)
        if len(ids) > 1 and not many:
            message = f"stage {ref.stage!r} has {len(ids)} instances, and this input takes one"
            fix = f"name one, e.g. stages.{ids[0]}.outputs.{ref.output}, or give this stage its matrix"
            self._say(node.mark, message, fix)
            return []
        fan_in = not ref.instance and any(axis not in matrix for axis in draft.axes)
        return [
            (id_ if fan_in else ref.stage, RefSource(id_, ref.output, spec.kind, node.mark)) for id_ in ids
        ]

    def _matching(self, draft: _Draft, ref: OutputRef, node: Node, matrix: dict[str, Scalar]) -> list[str]:
        if ref.instance:
            id_ = f"{ref.stage}[{ref.instance}]"
            if id_ not in draft.instances:
                known = list(draft.instances)
                fix = closest(id_, known) or f"they are {', '.join(known)}"
                self._say(node.mark, f"the matrix has no instance {id_}", fix)
                return []
            return [id_]
        return [
            id_
            for id_, own in draft.instances.items()
            if all(own[axis] == matrix[axis] for axis in own if axis in matrix)
        ]

    def _path_source(self, path: str, node: Node) -> PathSource | None:
        if not path or _leaves_project(path):
            self._say(node.mark, f"{path!r} is not a path inside the project",
                      "paths are relative to the pipeline's folder")  # fmt: skip
            return None
        full = self._folder / path
        if not full.exists():
            self._say(node.mark, f"{path} does not exist", _near_file(full))
            return None
        if how := stores_file(full, self._folder, self._environ):
            self._say(node.mark, f"{path} {_OF_THE_STORE[how][0]}", _OF_THE_STORE[how][1])
            return None
        kind: Kind = "folder" if full.is_dir() else "file"
        return PathSource(os.path.normpath(path), kind, node.mark)

    def _check_kind(self, source: Source, shape: interface.InputShape) -> None:
        if source.kind not in shape.kinds and source.mark is not None:
            wanted = " or ".join(sorted(shape.kinds))
            what = source.path if isinstance(source, PathSource) else f"{source.stage}.{source.output}"
            self._say(source.mark, f"{what} is a {source.kind}, this input is a {wanted}")

    def _order(self, nodes: dict[str, StageNode]) -> list[str]:
        upstream = {id_: [need for need in node.upstream if need in nodes] for id_, node in nodes.items()}
        order = topological_order(upstream)
        if len(order) < len(nodes):
            cycle = find_cycle(upstream)
            shown = " → ".join(reversed(cycle))
            self._say(nodes[cycle[0]].mark, f"the stages need each other in a circle: {shown}")
        return order


def _label(value: Scalar) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return re.sub(r"[^\w.+-]", "_", text)


def _leaves_project(path: str) -> bool:
    return os.path.isabs(path) or ".." in Path(path).parts or "\0" in path


def _near_file(path: Path) -> str:
    try:
        return closest(path.name, os.listdir(path.parent))
    except OSError:
        return ""


def _with_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_secrets(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_with_secrets(child) for child in value]
    if isinstance(value, str) and (name := secret_name(value)):
        return {"$secret": name}
    return value
