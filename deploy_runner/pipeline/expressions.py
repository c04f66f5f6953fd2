"""`${{ … }}` references: find them in a tree and put values in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import Problem, closest
from ..types import SECRET_MARK, Json, Mark
from .credentials import is_credential
from .loader import Node, plain

__all__ = ["OutputRef", "Scope", "Variables", "parse_output", "resolve", "secret_name"]

_REFERENCE = re.compile(r"\$\{\{\s*((?:(?!\}\}).)*?)\s*\}\}", re.DOTALL)
_OUTPUT = re.compile(
    r"stages\.(?P<stage>[A-Za-z_][\w-]*)(?P<instance>\[[^\]]*\])?\.outputs\.(?P<output>[\w-]+)\Z"
)
_SECRET = re.compile(f"{SECRET_MARK}(\\w+)\x01\\Z")
_ROOTS = ("stages", "vars", "env", "secrets", "matrix", "pipeline")


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
    named are collected in `secrets`.
    """

    name: str
    variables: Callable[[str], Json]
    env: Mapping[str, str]
    matrix: Mapping[str, Json] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    allow_secrets: bool = False


class _Refused(Exception):
    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


def parse_output(text: str) -> OutputRef | None:
    """Return the output that a whole string refers to, or None if it is no such reference."""
    found = _REFERENCE.fullmatch(text.strip())
    inner = _OUTPUT.match(found.group(1)) if found else None
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
    text: str = node.value
    try:
        whole = _REFERENCE.fullmatch(text)
        if whole:
            return _as_nodes(_value(whole.group(1), scope, whole=True), node.mark)
        result = _REFERENCE.sub(lambda m: _text(m.group(1), scope), text)
        if "${{" in result:
            raise _Refused("a '${{' is not closed by '}}'")
    except _Refused as error:
        mark = node.mark
        problems.append(Problem(str(error), mark.file, mark.line, mark.column, error.fix))
        return None
    return result


def _as_nodes(value: Json, mark: Mark) -> Any:
    if isinstance(value, dict):
        return {k: Node(_as_nodes(v, mark), mark) for k, v in value.items()}
    if isinstance(value, list):
        return [Node(_as_nodes(v, mark), mark) for v in value]
    return value


def _text(expression: str, scope: Scope) -> str:
    value = _value(expression, scope, whole=False)
    if isinstance(value, (dict, list)):
        raise _Refused(f"${{{{ {expression} }}}} is a list or mapping and can't be part of a string")
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _value(expression: str, scope: Scope, *, whole: bool) -> Json:
    root, _, rest = expression.partition(".")
    if root not in _ROOTS or not rest:
        known = "one of stages, vars, env, secrets, matrix and pipeline"
        raise _Refused(f"${{{{ {expression} }}}} does not begin with {known}", closest(root, _ROOTS))
    if root == "vars":
        return scope.variables(rest)
    if root == "pipeline":
        if rest != "name":
            raise _Refused(f"there is no ${{{{ {expression} }}}}", "only pipeline.name")
        return scope.name
    if root == "stages":
        raise _Refused("a stage's output can only be the whole value of an input")
    if root == "secrets":
        return _secret(rest, scope, whole=whole)
    return _member(root, rest, scope.env if root == "env" else scope.matrix, scope)


def _member(root: Literal["env", "matrix"] | str, name: str, known: Mapping[str, Json], scope: Scope) -> Json:
    if name not in known:
        if root == "env" and is_credential(name):
            raise _Refused(
                f"{name} is a credential, which `env` would store in plain text", f"${{{{ secrets.{name} }}}}"
            )
        where = "declare it under `env:`" if root == "env" else "declare it under `matrix:`"
        raise _Refused(f"{root}.{name} is not defined here", closest(name, known) or where)
    return known[name]


def _secret(name: str, scope: Scope, *, whole: bool) -> str:
    if not name.isidentifier():
        raise _Refused(f"{name!r} is not a valid name of a secret")
    if name.startswith("DEPLOY_RUNNER_"):
        raise _Refused(f"{name} is reserved by deploy-runner and can't be a stage's secret")
    if not scope.allow_secrets:
        raise _Refused("a secret can be used only under `with:`")
    if not whole:
        raise _Refused(
            f"the secret {name} is part of a longer string, which would leak it",
            "make it the whole value of a parameter",
        )
    scope.secrets.add(name)
    return f"{SECRET_MARK}{name}\x01"


class Variables:
    """The pipeline's `vars`, resolved when asked for; a cycle is refused."""

    def __init__(self, node: Node | None, scope: Scope, problems: list[Problem]) -> None:
        self._node = node
        self._scope = scope
        self._problems = problems
        self._resolving: list[str] = []
        self._done: dict[str, Json] = {}
        self.used: set[str] = set()

    def __call__(self, path: str) -> Json:
        """Return the value at a dotted path."""
        first, *rest = path.split(".")
        self.used.add(first)
        members = self._node.value if self._node is not None else {}
        if first not in members:
            raise _Refused(f"there is no vars.{first}", closest(first, members))
        value = self._resolved(first, members[first])
        for name in rest:
            if not isinstance(value, dict) or name not in value:
                known = list(value) if isinstance(value, dict) else []
                raise _Refused(f"there is no vars.{path}", closest(name, known))
            value = value[name]
        return value

    def _resolved(self, name: str, node: Node) -> Json:
        if name not in self._done:
            if name in self._resolving:
                circle = " → ".join([*self._resolving[self._resolving.index(name) :], name])
                raise _Refused(f"vars refer to each other in a cycle: {circle}")
            self._resolving.append(name)
            try:
                self._done[name] = plain(resolve(node, self._scope, self._problems))
            finally:
                self._resolving.pop()
        return self._done[name]

    def all(self) -> dict[str, Json]:
        """Return every variable, resolved."""
        members = self._node.value if self._node is not None else {}
        for name, node in members.items():
            self._resolved(name, node)
        return dict(self._done)
