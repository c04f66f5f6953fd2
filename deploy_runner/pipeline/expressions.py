"""`${{ … }}` references: find them in a tree and put values in their place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import Problem, closest
from ..types import SECRET_MARK, Json, Mark
from .credentials import is_credential
from .foreign import foreign, shown
from .loader import Node, plain
from .references import BadReference, Reference, pieces, whole

__all__ = [
    "Budget", "OutputRef", "Refused", "Scope", "Variables", "parse_output", "resolve", "secret_name",
    "shown_cycle",
]  # fmt: skip

_OUTPUT = re.compile(
    r"stages\.(?P<stage>[A-Za-z_][\w-]*)(?P<instance>\[[^\]]*\])?\.outputs\.(?P<output>[\w-]+)\Z"
)
_SECRET = re.compile(f"{SECRET_MARK}(\\w+)\x01\\Z")
_LITERAL = re.compile(r"'((?:[^']|'')*)'\Z")
_ROOTS = ("stages", "vars", "env", "secrets", "matrix", "pipeline")
_MAX_DEPTH = 64
_MOST_CIRCLES = 12
_SHOWN = 12
_NODE = 100
"""What a value counts for beside its characters."""


class Refused(Exception):
    """A reference that can't be resolved, and how to fix it."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


@dataclass(slots=True)
class Budget:
    """What all references of a pipeline may expand to together, in characters."""

    limit: int = 80_000_000
    spent: int = 0

    def spend(self, characters: int) -> None:
        """Count what was expanded; raise where it is too much."""
        self.spent += characters
        if self.spent > self.limit:
            raise Refused(
                f"the references of the pipeline expand to more than {self.limit} characters", "shorten them"
            )


@dataclass(frozen=True, slots=True)
class OutputRef:
    """A reference to an output: `stage` is a stage's name, `instance` one of its matrix ids."""

    stage: str
    instance: str
    output: str


@dataclass(slots=True)
class Scope:
    """What references may name at one place of the pipeline.

    `variables` gives the value of a `vars` path (it may itself hold references). The secrets that are
    named are collected in `secrets`, and `varies` says that a value of the matrix was asked for.
    `others` are the names that the matrix has in other instances of the stage.
    """

    name: str
    variables: Callable[[str], Json]
    env: Mapping[str, str]
    matrix: Mapping[str, Json] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    allow_secrets: bool = False
    others: Collection[str] = ()
    varies: bool = False
    budget: Budget = field(default_factory=Budget)


def parse_output(text: str) -> OutputRef | None:
    """Return the output that a whole string refers to, or None if it is no such reference."""
    expression = whole(text)
    inner = _OUTPUT.match(expression) if expression is not None else None
    if inner is None:
        return None
    return OutputRef(inner["stage"], (inner["instance"] or "")[1:-1], inner["output"])


def secret_name(text: str) -> str | None:
    """Return the secret's name where `text` is what `resolve` put in a secret's place."""
    found = _SECRET.match(text)
    return found.group(1) if found else None


def resolve(node: Node, scope: Scope, problems: list[Problem]) -> Node:
    """Return the tree with every reference replaced by its value; problems are appended."""
    if isinstance(node.value, dict):
        value: Any = {k: resolve(child, scope, problems) for k, child in node.value.items()}
    elif isinstance(node.value, list):
        value = [resolve(child, scope, problems) for child in node.value]
    elif isinstance(node.value, str) and "${{" in node.value:
        value = _resolve_text(node, scope, problems)
    else:
        return node
    return Node(value, node.mark, node.keys)


def _resolve_text(node: Node, scope: Scope, problems: list[Problem]) -> Any:
    try:
        return _expanded(node, scope)
    except (Refused, BadReference) as error:
        mark = node.mark
        fix = getattr(error, "fix", "")
        problems.append(Problem(str(error), mark.file, mark.line, mark.column, fix))
        return None


def _expanded(node: Node, scope: Scope) -> Any:
    parts = pieces(node.value)
    match parts:
        case [Reference(expression)]:
            return _as_nodes(_value(expression, scope, whole=True), node.mark, scope.budget)
    texts = [part if isinstance(part, str) else _text(part.expression, scope) for part in parts]
    scope.budget.spend(sum(map(len, texts)))
    return "".join(texts)


def _as_nodes(value: Json, mark: Mark, budget: Budget) -> Any:
    budget.spend(_NODE + (len(value) if isinstance(value, str) else 0))
    if isinstance(value, dict):
        return {k: Node(_as_nodes(v, mark, budget), mark) for k, v in value.items()}
    if isinstance(value, list):
        return [Node(_as_nodes(v, mark, budget), mark) for v in value]
    return value


def _text(expression: str, scope: Scope) -> str:
    value = _value(expression, scope, whole=False)
    if isinstance(value, (dict, list)):
        raise Refused(f"{shown(expression)} is a list or mapping and can't be part of a string")
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _value(expression: str, scope: Scope, *, whole: bool) -> Json:
    if literal := _LITERAL.match(expression):
        return literal.group(1).replace("''", "'")
    try:
        return _named(expression, scope, whole=whole)
    except Refused:
        if other := foreign(expression):
            raise Refused(*other) from None
        raise


def _named(expression: str, scope: Scope, *, whole: bool) -> Json:
    root, _, rest = expression.partition(".")
    if root not in _ROOTS or not rest:
        known = "one of stages, vars, env, secrets, matrix and pipeline"
        fix = closest(root, _ROOTS) or "for the characters '${{' themselves write ${{ '${{' }}"
        raise Refused(f"{shown(expression)} does not begin with {known}", fix)
    if root == "vars":
        return scope.variables(rest)
    if root == "pipeline":
        if rest != "name":
            raise Refused(f"there is no {shown(expression)}", "only pipeline.name")
        return scope.name
    if root == "stages":
        raise Refused("a stage's output can only be the whole value of an input")
    if root == "secrets":
        return _secret(rest, scope, whole=whole)
    return _member(root, rest, scope)


def _member(root: Literal["env", "matrix"] | str, name: str, scope: Scope) -> Json:
    known: Mapping[str, Json] = scope.env if root == "env" else scope.matrix
    scope.varies = scope.varies or root == "matrix"
    if name not in known:
        if root == "env" and is_credential(name):
            raise Refused(
                f"{name} is a credential, which `env` would store in plain text", shown(f"secrets.{name}")
            )
        if root == "matrix" and name in scope.others:
            values = ", ".join(f"{name}: {json.dumps(value)}" for name, value in known.items())
            raise Refused(
                f"matrix.{name} is not defined in the instance of {{{values}}}",
                f"begin `include` with a value for all: `- {name}: …`",
            )
        where = "declare it under `env:`" if root == "env" else "declare it under `matrix:`"
        raise Refused(f"{root}.{name} is not defined here", closest(name, known) or where)
    return known[name]


def _secret(name: str, scope: Scope, *, whole: bool) -> str:
    if not name.isidentifier():
        raise Refused(f"{name!r} is not a valid name of a secret")
    if name.startswith("DEPLOY_RUNNER_"):
        raise Refused(f"{name} is reserved by deploy-runner and can't be a stage's secret")
    if not scope.allow_secrets:
        raise Refused("a secret can be used only under `with:`")
    if not whole:
        raise Refused(
            f"the secret {name} is part of a longer string, which would leak it",
            "make it the whole value of a parameter",
        )
    scope.secrets.add(name)
    return f"{SECRET_MARK}{name}\x01"


class Variables:
    """The pipeline's `vars`, each resolved after those that it refers to; a cycle is refused."""

    def __init__(self, node: Node | None, scope: Scope, problems: list[Problem]) -> None:
        value = node.value if node is not None else None
        self._members: dict[str, Node] = value if isinstance(value, dict) else {}
        self._scope = scope
        self._problems = problems
        self._current = ""
        self._circles: dict[tuple[str, str], str] = {}
        self._done: dict[str, Json] = {}
        self.used: set[str] = set()

    def __call__(self, path: str) -> Json:
        """Return the value at a dotted path."""
        first, *rest = path.split(".")
        self.used.add(first)
        if first not in self._members:
            raise Refused(f"there is no vars.{first}", closest(first, self._members))
        if circle := self._circles.get((self._current, first)):
            raise Refused(f"vars refer to each other in a cycle: {circle}")
        self._settle(first)
        value = self._done[first]
        for name in rest:
            if not isinstance(value, dict) or name not in value:
                known = list(value) if isinstance(value, dict) else []
                raise Refused(f"there is no vars.{path}", closest(name, known))
            value = value[name]
        return value

    def all(self) -> dict[str, Json]:
        """Return every variable, resolved."""
        for name in self._members:
            self._settle(name)
        return dict(self._done)

    def _settle(self, name: str) -> None:
        """Resolve a variable and all that it refers to, without recursion: a chain may be long."""
        if name in self._done:
            return
        path = {name: self._named_by(name)}
        while path:
            current = next(reversed(path))
            need = next((need for need in path[current] if need not in self._done), None)
            if need is None:
                self._done[current] = self._resolved(current)
                del path[current]
            elif need in path:
                self._circles[current, need] = shown_cycle(self._circle(path, need))
            else:
                path[need] = self._named_by(need)

    def _circle(self, path: Mapping[str, object], need: str) -> list[str]:
        """Return the names from `need` to the path's end, and `need` again; of many circles only `need`."""
        if len(self._circles) >= _MOST_CIRCLES:
            return [need, "…", need]
        names = list(path)
        return [*names[names.index(need) :], need]

    def _resolved(self, name: str) -> Json:
        node = self._members[name]
        self._current = name
        value = plain(resolve(node, self._scope, self._problems))
        self._current = ""
        if _depth(value) <= _MAX_DEPTH:
            return value
        mark = node.mark
        message = f"vars.{name} is nested deeper than {_MAX_DEPTH} levels"
        self._problems.append(Problem(message, mark.file, mark.line, mark.column))
        return None

    def _named_by(self, name: str) -> Iterator[str]:
        """Yield the variables that one refers to."""
        pending = [self._members[name]]
        while pending:
            value = pending.pop().value
            if isinstance(value, (dict, list)):
                pending += value.values() if isinstance(value, dict) else value
            elif isinstance(value, str) and "${{" in value:
                with suppress(BadReference):  # `resolve` says it.
                    names = [p.expression.split(".") for p in pieces(value) if isinstance(p, Reference)]
                    yield from (n[1] for n in names if n[0] == "vars" and n[1:] and n[1] in self._members)


def shown_cycle(names: Sequence[str]) -> str:
    """Return a cycle as a sentence shows it: of a long one the beginning and the end."""
    if len(names) > _SHOWN:
        names = [*names[: _SHOWN - 2], "…", names[-1]]
    return " → ".join(names)


def _depth(value: Json) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
