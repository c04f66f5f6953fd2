"""Read every error message from the source: where it is made, what it says, and how to fix it.

An error is made by a call of one of the classes of `deploy_runner.errors` (or of one derived from them), of
`Problem`, or of a function that passes its own parameter on to such a call. What is only known at run time is
shown as a word in capitals: the name of the variable that has it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

__all__ = ["Message", "collected"]

_ERRORS = ("DeployRunnerError", "Exception", "OSError", "RuntimeError", "ValueError")
"""Python's own count for the classes that are derived from them; only ValueError itself reaches users."""
_DEEPEST, _ALTERNATIVES = 6, 6
_UNKNOWN = "…"
_PASSED_ON = {
    "cut",
    "repr",
    "str",
    "shortened",
    "sorted",
    "list",
    "set",
    "tuple",
    "map",
    "quoted",
    "min",
    "max",
}
_REASONS = {"error", "exc", "err", "exception", "reason", "said", "why", "cause", "failure"}
_SAME = {"closest": "did you mean 'NAME'?", "closest_path": "did you mean 'PATH'?", "counted": "N"}


class Message(NamedTuple):
    """One sentence that a user may read, with the place of the call that makes it."""

    module: str
    text: str
    fix: str


class _Maker(NamedTuple):
    """Where a class or function takes the message and the fix; a function may have one fix for all."""

    text: int | None
    fix: int | None
    names: tuple[str, str] = ("message", "fix")
    same_fix: tuple[str, ...] = ()


def collected(package: Path) -> list[Message]:
    """Return the messages of a package, without repetition, in the order of modules and then of texts."""
    modules = [_Module(path, package) for path in sorted(_sources(package))]
    makers = _makers(modules)
    found = {message for module in modules for message in module.messages(makers)}
    return sorted(found)


def _sources(package: Path) -> Iterator[Path]:
    """Return the files that may make an error. `stages` is a link, which `rglob` doesn't follow."""
    for folder in (package, package / "stages"):
        yield from (p for p in folder.resolve().rglob("*.py") if "__pycache__" not in p.parts)


def _makers(modules: list[_Module]) -> dict[tuple[str, str], _Maker]:
    """Return what makes errors, by module and name; names that all modules know have no module."""
    made: dict[tuple[str, str], _Maker] = {("", name): _Maker(0, None) for name in _ERRORS}
    made["", "Problem"] = _Maker(0, 4)  # Its fix is the fifth.
    made["", "_Misfit"] = _Maker(1, 3)
    before = 0
    while before != len(made):
        before = len(made)
        for module in modules:
            for node in module.classes:
                if any(("", _name(base)) in made for base in node.bases):
                    made.setdefault(("", node.name), _Maker(0, None))
                    if (at := _takes_fix(node)) is not None:
                        made[module.name, node.name] = _Maker(0, at)
    for name in ("Exception", "OSError", "RuntimeError"):
        del made["", name]
    while True:
        before = len(made)
        for module in modules:
            for function, maker in list(module.pass_on(made)):
                made.setdefault((module.name, function.name), maker)
                if not function.name.startswith("_") and _is_method(function):
                    made.setdefault(("", f".{function.name}"), maker)
        if before == len(made):
            return made


class _Module:
    """One file of the source."""

    def __init__(self, path: Path, package: Path) -> None:
        stages = (package / "stages").resolve()
        inside = path.is_relative_to(stages)
        place = Path("stages") / path.relative_to(stages) if inside else path.relative_to(package.resolve())
        self.name = ".".join(place.with_suffix("").parts)
        self._tree = ast.parse(path.read_text(encoding="utf-8"))
        self.classes: list[ast.ClassDef] = []
        self.functions: list[ast.FunctionDef] = []
        self._calls: list[tuple[ast.Call, tuple[ast.FunctionDef, ...]]] = []
        self._imported: dict[str, str] = {}
        self._visit(self._tree, ())

    def _visit(self, node: ast.AST, scopes: tuple[ast.FunctionDef, ...]) -> None:
        """Note what is below a node; `scopes` are the functions around it, the innermost first."""
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.FunctionDef():
                    self.functions.append(child)
                    self._visit(child, (child, *scopes))
                    continue
                case ast.ClassDef():
                    self.classes.append(child)
                case ast.Call():
                    self._calls.append((child, scopes))
                case ast.ImportFrom():
                    home = _module(child, self.name)
                    self._imported |= {alias.asname or alias.name: home for alias in child.names}
            self._visit(child, scopes)

    def messages(self, makers: Mapping[tuple[str, str], _Maker]) -> Iterator[Message]:
        """Return what the calls of this file say."""
        for call, scopes in self._calls:
            maker = self._maker(call, makers)
            if maker is None:
                continue
            text, fix = _arguments(call, maker)
            fixes = self._texts(fix, scopes) if fix is not None else maker.same_fix
            shown = "; or ".join(dict.fromkeys(f for f in fixes if re.search(r"[a-z]{2,}", f)))
            for said in self._texts(text, scopes) if text is not None else []:
                if _says_something(said):
                    yield Message(self.name, " ".join(said.split()), " ".join(shown.split()))

    def pass_on(self, makers: Mapping[tuple[str, str], _Maker]) -> Iterator[tuple[ast.FunctionDef, _Maker]]:
        """Return the functions that hand a parameter of their own to what makes errors."""
        for call, scopes in self._calls:
            maker = self._maker(call, makers)
            text, fix = _arguments(call, maker) if maker else (None, None)
            for function in scopes[:1]:
                taken = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
                names = {*taken, *(a.arg for a in function.args.kwonlyargs)}
                if isinstance(text, ast.Name) and text.id in names:
                    fixed = fix.id if isinstance(fix, ast.Name) and fix.id in names else ""
                    bound = _is_method(function)
                    at = [taken.index(n) - bound if n in taken else None for n in (text.id, fixed)]
                    same = () if fixed or fix is None else tuple(self._texts(fix, scopes))
                    yield function, _Maker(at[0], at[1], (text.id, fixed or "fix"), same)

    def _maker(self, call: ast.Call, makers: Mapping[tuple[str, str], _Maker]) -> _Maker | None:
        if isinstance(call.func, ast.Attribute) and _name(call.func.value) in ("_log", "log"):
            return None
        name = _name(call.func)
        home = self._imported.get(name, self.name) if isinstance(call.func, ast.Name) else self.name
        return makers.get((home, name)) or makers.get(("", name)) or makers.get(("", f".{name}"))

    def _texts(self, node: ast.expr, scopes: tuple[ast.FunctionDef, ...], depth: int = 0) -> list[str]:
        """Return what an expression may say, as far as the source shows it."""
        deeper = depth + 1
        if depth > _DEEPEST:
            return []
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return ["".join(_part(value) for value in values)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                pairs = product(self._texts(left, scopes, deeper), self._texts(right, scopes, deeper))
                return [one + other for one, other in pairs][:_ALTERNATIVES]
            case ast.IfExp(body=body, orelse=other):
                return self._texts(body, scopes, deeper) + self._texts(other, scopes, deeper)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self._texts(value, scopes, deeper)]
            case ast.Call(func=ast.Name(id=name)) if name in _SAME:
                return [_SAME[name]]
            case ast.Call(func=ast.Name(id=name)):
                here = [f for f in self.functions if f.name == name]
                returned = [
                    n.value for f in here for n in ast.walk(f) if isinstance(n, ast.Return) and n.value
                ]
                return [t for value in returned for t in self._texts(value, tuple(here), deeper)][
                    :_ALTERNATIVES
                ]
            case ast.Name(id=name):
                return self._assigned(name, scopes, deeper)
        return []

    def _assigned(self, name: str, scopes: tuple[ast.FunctionDef, ...], depth: int) -> list[str]:
        """Return what is assigned to a name: in the innermost scope that does so, else in the module."""
        for scope in (*scopes, self._tree):
            nodes = scope.body if isinstance(scope, ast.Module) else ast.walk(scope)
            values = [
                value
                for node in nodes
                for target, value in _assignments(node)
                if isinstance(target, ast.Name) and target.id == name
            ]
            if values:
                texts = [text for value in values for text in self._texts(value, scopes, depth)]
                return texts[:_ALTERNATIVES]
        return []


def _takes_fix(made: ast.ClassDef) -> int | None:
    """Return the place of `fix` among the arguments by which a class is made."""
    for node in made.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [argument.arg for argument in node.args.args[1:]]
            return names.index("fix") if "fix" in names else None
    return None


def _is_method(function: ast.FunctionDef) -> bool:
    return [a.arg for a in function.args.args][:1] in (["self"], ["cls"])


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Return targets and values, those of `a, b = x, y` one by one."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            yield from zip(targets, values, strict=False)
        case ast.Assign(targets=targets, value=value):
            yield from ((target, value) for target in targets)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            yield target, value


def _arguments(call: ast.Call, maker: _Maker) -> tuple[ast.expr | None, ast.expr | None]:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    found = [call.args[at] if at is not None and at < len(call.args) else None for at in maker[:2]]
    text, fix = (value or named.get(name) for value, name in zip(found, maker.names, strict=True))
    if _name(call.func) == "_Misfit" and text is not None:  # What is said before and after a key's name.
        parts = [ast.Constant("`with` of stage 'NAME' (USES)"), text, ast.Constant("'KEY'"), *call.args[2:3]]
        text = functools.reduce(lambda one, other: ast.BinOp(one, ast.Add(), other), parts)
    if isinstance(text, ast.Tuple):  # A problem of a request: the place in it comes first.
        text = call.args[1] if len(call.args) > 1 else None
    return text, fix


def _module(node: ast.ImportFrom, name: str) -> str:
    """Return the module that a statement imports from, as `_Module.name` has it."""
    if node.level:
        return ".".join([*name.split(".")[: -node.level], *(node.module or "").split(".")])
    return (node.module or "").removeprefix("deploy_runner.")


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _part(node: ast.expr) -> str:
    """Return one part of an f-string: its text, or the value's name in capitals."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=value, conversion=conversion):
            shown = _placeholder(value)
            return f"'{shown}'" if conversion == ord("r") and shown[:1] not in ("'", _UNKNOWN) else shown
    return _UNKNOWN


def _placeholder(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(map(_part, values))
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _capitals(name)
        case ast.Subscript(value=value) | ast.Starred(value=value) | ast.Await(value=value):
            return _placeholder(value)
        case ast.IfExp(body=body, orelse=other):
            return _placeholder(body) or _placeholder(other)
        case ast.GeneratorExp(elt=elt) | ast.ListComp(elt=elt) | ast.SetComp(elt=elt):
            return _placeholder(elt)
        case ast.Call(func=ast.Name(id="counted"), args=[_, ast.Constant(value=str(noun))]):
            return f"N {noun}s"
        case ast.Call(func=ast.Name(id="command"), args=[ast.Constant(value=str(verb)), *rest]):
            return f"deploy-runner {verb} {_placeholder(rest[-1])}"
        case ast.Call(func=ast.Name(id="len")):
            return "N"
        case ast.Call(func=ast.Name(id="cut"), args=[first, *_]):
            return f"'{_placeholder(first)}'"
        case ast.Call(func=ast.Attribute(attr="join"), args=[first, *_]):
            return _placeholder(first)
        case ast.Call(
            func=ast.Attribute(value=value, attr=("strip" | "lower" | "upper" | "decode" | "rstrip"))
        ):
            return _placeholder(value)
        case ast.Call(func=ast.Name(id=name), args=args):
            if name == "map" and len(args) > 1:
                return _placeholder(args[1])
            return _placeholder(args[0]) if args and name in _PASSED_ON else _capitals(name)
    return _UNKNOWN


def _capitals(name: str) -> str:
    """Return a variable's name as the docs write what the reader puts in: `old_name` is OLD-NAME."""
    name = name.strip("_")
    if name in _REASONS:
        return "REASON"
    return name.upper().replace("_", "-") if len(name) > 1 else _UNKNOWN


def _says_something(text: str) -> bool:
    """Return whether a text has words of its own, by which it can be found."""
    return len(re.findall(r"[a-z]{2,}", text)) > 1 or text.startswith("did you mean")
