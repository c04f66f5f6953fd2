"""Write the Python that builds a nested argument of forward() out of flat tensors.

What a mapping or a list becomes is said by forward()'s own annotations, as far as they can be resolved:
a dict, a list, a tuple, or a class that is called with its fields (a NamedTuple, a dataclass, any other).
Without one a list stays a list, and a mapping becomes `Fields`, which serves `batch["mask"]` and
`batch.mask` alike.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import dataclasses
import inspect
import keyword
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deploy_runner.sdk import StageError, closest

from .nesting import Path, Tree, shown

__all__ = ["FIELDS", "Fields", "Writer", "arranged", "hints_of", "is_structure", "unresolved"]

FIELDS = '''class Fields(dict):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
'''


class Fields(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}", name=name, obj=self) from None


def hints_of(function: Any) -> dict[str, Any]:
    """Return a function's annotations by parameter, those that can't be resolved left out."""
    own = inspect.unwrap(getattr(function, "__func__", function))
    try:
        raw = dict(getattr(own, "__annotations__", {}))
    except NameError:  # From Python 3.14 on they are resolved when they are read, all or none.
        return {}
    return _resolved(raw, getattr(own, "__globals__", {}))


def _resolved(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, hint in raw.items():
        one = types.SimpleNamespace(__annotations__={name: hint})
        try:
            found[name] = typing.get_type_hints(one, dict(known), _unknown(hint, known))[name]
        except Exception:  # An annotation is any expression.
            continue
    return found


def unresolved(function: Any) -> dict[str, str]:
    """Return the annotations by parameter whose names nothing defines at the top level of their file."""
    raw = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__annotations__", {})
    known = hints_of(function)
    return {name: hint for name, hint in raw.items() if isinstance(hint, str) and known.get(name, Any) is Any}


def _unknown(hint: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return Any for each name that only a type checker imports."""
    tree = ast.parse(hint, mode="eval") if isinstance(hint, str) else ast.Module([], [])
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return {name: Any for name in names if name not in known and not hasattr(builtins, name)}


def _options(hint: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from _options(one)
    elif origin in (typing.Annotated, typing.Final, typing.Required, typing.NotRequired):
        yield from _options(arguments[0])
    elif isinstance(hint, typing.NewType):
        yield from _options(hint.__supertype__)
    elif isinstance(hint, typing.TypeVar):
        yield from _options(hint.__bound__)
    elif hasattr(hint, "__value__"):  # An alias of `type`.
        yield from _options(hint.__value__)
    elif hint not in (None, type(None), Any):
        yield hint


def is_structure(hint: Any) -> bool:
    """Say whether an annotation allows nothing but what is made of several tensors."""
    options = [typing.get_origin(one) or one for one in _options(hint)]
    return bool(options) and all(
        isinstance(one, type) and (_is_list(one) or issubclass(one, Mapping) or _is_record(one))
        for one in options
    )


def _is_list(kind: type) -> bool:
    return issubclass(kind, (list, tuple)) or kind in (
        collections.abc.Sequence,
        collections.abc.Iterable,
        collections.abc.Collection,
        collections.abc.MutableSequence,
    )


def _is_record(kind: type) -> bool:
    """Say whether a class surely has fields."""
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


@dataclass(frozen=True, slots=True)
class _Form:
    """How one level is built: `kind` is called with its `fields`, or with what holds the children."""

    kind: type
    hint: Callable[[Any], Any] = lambda _: None
    fields: tuple[str, ...] | None = None
    required: frozenset[str] = frozenset()
    closed: bool = False
    key: Callable[[str], Any] = str


def _form(tree: Any, hint: Any, path: Path) -> _Form:
    """Return the form of a mapping or a list. Raises StageError for a field that is missing or unknown."""
    for option in _options(hint):
        kind = typing.get_origin(option) or option
        if not isinstance(kind, type):
            continue
        arguments = typing.get_args(option)
        found = _of_list(kind, arguments) if isinstance(tree, list) else _of_mapping(kind, arguments)
        if found is not None:
            if isinstance(tree, Mapping):
                _refuse_fields(found, tree, path)
            return found
    return _Form(list if isinstance(tree, list) else Fields)


def _of_list(kind: type, arguments: tuple[Any, ...]) -> _Form | None:
    if _is_record(kind) and issubclass(kind, tuple):
        return _Form(kind, dict(enumerate(_fields_of(kind).hints.values())).get, fields=())
    if not _is_list(kind):
        return None
    hints = [one for one in arguments if one is not Ellipsis]
    return _Form(
        tuple if issubclass(kind, tuple) else list,
        lambda place: hints[min(place, len(hints) - 1)] if hints else None,
    )


def _of_mapping(kind: type, arguments: tuple[Any, ...]) -> _Form | None:
    if typing.is_typeddict(kind):
        hints = _resolved(kind.__annotations__, vars(sys.modules[kind.__module__]))
        return _Form(dict, hints.get, required=getattr(kind, "__required_keys__", frozenset()))
    if issubclass(kind, Mapping):
        made: type = dict if inspect.isabstract(kind) else kind
        key = int if arguments and arguments[0] is int else str
        return _Form(made, lambda _: arguments[-1] if arguments else None, key=key)
    library = kind.__module__.partition(".")[0] in ("builtins", "torch", "numpy", "typing", "collections")
    if not _is_record(kind) and (library or inspect.isabstract(kind) or getattr(kind, "_is_protocol", False)):
        return None
    found = _fields_of(kind)
    return _Form(kind, found.hints.get, tuple(found.hints), found.required, found.closed)


class _FieldsOf(NamedTuple):
    hints: dict[str, Any]
    required: frozenset[str]
    closed: bool


def _fields_of(kind: type) -> _FieldsOf:
    """Return the fields that a class is called with, which of them it requires, and if it takes no others."""
    try:
        taken = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return _FieldsOf({}, frozenset(), closed=False)
    own = [p for p in taken if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    hints = _resolved({p.name: p.annotation for p in own}, vars(sys.modules[kind.__module__]))
    return _FieldsOf(
        {p.name: None if p.annotation is p.empty else hints.get(p.name) for p in own},
        frozenset(p.name for p in own if p.default is p.empty),
        closed=not any(p.kind is p.VAR_KEYWORD for p in taken),
    )


def _refuse_fields(form: _Form, tree: Mapping[str, Any], path: Path) -> None:
    """Raise StageError where a class has other fields than these, or needs more."""
    said = f"forward() takes {shown(path)} as {form.kind.__name__}"
    for name in tree if form.closed else ():
        if name not in (form.fields or ()):
            known = ", ".join(form.fields or ()) or "nothing"
            raise StageError(f"{said}, which has no {name!r}, only {known}",
                             fix=closest(name, form.fields or ()))  # fmt: skip
    for name in sorted(form.required - set(tree)):
        raise StageError(f"{said}, which requires {name!r}, which has no example",
                         fix=f"add `example.{shown((*path, name))}`")  # fmt: skip


def arranged(tree: Any, hint: Any, path: Path) -> Any:
    """Return a tree with its mappings in the order of their class's fields, else sorted.

    Keys of a mapping have no order of their own: two pipelines that differ by it have one key.
    """
    if isinstance(tree, Mapping):
        form = _form(tree, hint, path)
        order = {name: place for place, name in enumerate(form.fields or ())}
        keys = sorted(tree, key=lambda key: (order.get(key, len(order)), key))
        return {key: arranged(tree[key], form.hint(key), (*path, key)) for key in keys}
    if isinstance(tree, list):
        form = _form(tree, hint, path)
        return [arranged(child, form.hint(i), (*path, i)) for i, child in enumerate(tree)]
    return tree


@dataclass(slots=True)
class Writer:
    """Writes expressions; `words` are the variables by input, `kinds` the classes that they name."""

    words: Mapping[str, str]
    kinds: dict[str, type] = field(default_factory=dict)

    def text(self, tree: Tree, hint: Any, path: Path) -> str:
        """Return the expression that builds one argument."""
        if isinstance(tree, str):
            return self.words[tree]
        form = _form(tree, hint, path)
        if isinstance(tree, list):
            items = [self.text(child, form.hint(i), (*path, i)) for i, child in enumerate(tree)]
            if form.fields is not None:
                return f"{self._name(form.kind)}({', '.join(items)})"
            closed = "({},)" if form.kind is tuple and len(items) == 1 else "({})"
            return (closed if form.kind is tuple else "[{}]").format(", ".join(items))
        children = {key: self.text(child, form.hint(key), (*path, key)) for key, child in tree.items()}
        if form.kind is dict:
            return _braces({form.key(key): text for key, text in children.items()})
        named = form.fields is not None or form.kind is Fields
        if named and all(key.isidentifier() and not keyword.iskeyword(key) for key in children):
            inside = ", ".join(f"{key}={text}" for key, text in children.items())
        else:
            inside = ("**" if named else "") + _braces(
                {form.key(key): text for key, text in children.items()}
            )
        return f"{self._name(form.kind)}({inside})"

    def _name(self, kind: type) -> str:
        """Return the word for a class, one that no variable and no other class has."""
        word = kind.__name__ if kind.__name__.isidentifier() else "Kind"
        while word in self.words.values() or self.kinds.get(word, kind) is not kind:
            word += "_"
        self.kinds[word] = kind
        return word


def _braces(children: Mapping[Any, str]) -> str:
    return "{" + ", ".join(f"{key!r}: {text}" for key, text in children.items()) + "}"
