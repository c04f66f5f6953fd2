"""What of a tree doesn't fit a model, said in the words of the file.

pydantic decides whether something fits. Its errors name the members of unions and the validators, which
no user has written; so the tree is walked beside the model, and each error is said of the member of a
union that the user most likely meant: the one with the fewest errors.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import Problem, closest, cut
from ..types import Json, Mark
from .loader import Node

__all__ = ["find_mark", "problems_of"]

Place = tuple[str | int, ...]

_MOST = 200
"""Of so many misfits the others tell nothing new, and all of a large file would take long."""


class _Misfit(NamedTuple):
    """What is wrong at a place: what the sentence says before its name, and after it.

    `weight` says how unlikely it makes that this form was meant.
    """

    place: Place
    before: str
    after: str = ""
    fix: str = ""
    of_key: bool = False
    weight: int = 2


def find_mark(node: Node, path: Sequence[str | int], *, key: bool = False) -> Mark:
    """Return the place of a value in a tree, as deep as the path can be followed.

    With `key` it is the place of the last name itself, where that is a mapping's key.
    """
    mark = node.mark
    for index, part in enumerate(path):
        children = node.value
        if isinstance(children, dict) and part in children:
            last = index == len(path) - 1
            mark = node.keys.get(str(part), children[part].mark) if key and last else children[part].mark
            node = children[part]
        elif isinstance(children, list) and isinstance(part, int) and part < len(children):
            node = children[part]
            mark = node.mark
        else:
            break
    return mark


def problems_of(
    error: ValidationError, data: Json, node: Node, what: str, model: type[BaseModel]
) -> list[Problem]:
    """Return the problems of `data`, which `node` is the source of: `what` names it in their sentences."""
    misfits = _in_value(model, data, ())[:_MOST]
    for detail in error.errors(include_url=False)[:_MOST]:
        place = _followable(data, detail["loc"])
        judged = detail["type"] in {"value_error", "string_pattern_mismatch", *_LIMITS, *_LENGTHS}
        if not any(_overlap(place, misfit.place) for misfit in misfits) and (judged or not misfits):
            misfits.append(_of_detail(detail, place))
    problems = []
    for misfit in misfits:
        mark = find_mark(node, misfit.place, key=misfit.of_key)
        name = ".".join(map(str, misfit.place))
        said = f"{misfit.before}{name!r}{misfit.after}" if name else misfit.after
        problems.append(Problem(f"{what}{said}", mark.file, mark.line, mark.column, misfit.fix))
    return list(dict.fromkeys(problems))


def _overlap(one: Place, other: Place) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _followable(data: Json, loc: Sequence[str | int]) -> Place:
    """Drop the parts of pydantic's path that name a union's member, not a part of the data."""
    path: list[str | int] = []
    for part in loc:
        inside = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside or (isinstance(data, dict) and part in data):
            data = data[part]  # type: ignore[index]
            path.append(part)
    return tuple(path)


def _in_model(model: type[BaseModel], data: Mapping[str, Json], place: Place) -> Iterator[_Misfit]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    meant = set()
    unknown = [] if model.model_config.get("extra") == "allow" else [key for key in data if key not in fields]
    for key in unknown[:_MOST]:
        fix = closest(key, fields)
        meant.add(fix)
        listed = f"valid keys: {', '.join(fields)}" if fields else ""
        yield _Misfit((*place, key), " has no ", "", fix or listed,
                      of_key=True, weight=1 if fix else 3)  # fmt: skip
    for name, field in fields.items():
        if name in data:
            yield from _in_value(field.annotation, data[name], (*place, name))
        elif field.is_required() and closest(name, [name]) not in meant:
            said = f": {field.description}" if field.description else ""
            yield _Misfit((*place, name), " needs ", said, weight=1)


def _in_value(annotation: Any, value: Json, place: Place, alias: Any = None) -> list[_Misfit]:
    """Return what of a value doesn't fit the form that it comes nearest to.

    `alias` is the type alias that the annotation is a part of, and may name as a text.
    """
    if isinstance(annotation, (str, typing.ForwardRef)):
        annotation = alias
    alias = annotation if hasattr(annotation, "__value__") else alias
    forms = list(_forms(annotation))
    fitting = [form for form in forms if _is_of(form, value)]
    if not fitting:
        return [_Misfit(place, ": ", f" must be {_named(forms)}, not {_shown(value)}")]
    tries = [(form, list(_in_form(form, value, place, alias))) for form in fitting]
    return min(tries, key=lambda t: sum(misfit.weight for misfit in t[1]) - _recognized(t[0], value))[1]


def _recognized(form: Any, value: Any) -> int:
    """Return the weight of the names in a mapping that a model has."""
    return 2 * len(form.model_fields.keys() & value) if _is_model(form) else 0


def _in_form(form: Any, value: Any, place: Place, alias: Any) -> Iterator[_Misfit]:
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if _is_model(form):
        yield from _in_model(form, value, place)
    elif origin is dict:
        for key, child in value.items():
            yield from _in_value(arguments[1], child, (*place, key), alias)
    elif origin in (list, tuple):
        for index, child in enumerate(value):
            yield from _in_value(arguments[0], child, (*place, index), alias)
    elif origin is Literal and not any(value is a or value == a for a in arguments):
        near = closest(value, [a for a in arguments if isinstance(a, str)]) if isinstance(value, str) else ""
        yield _Misfit(place, ": ", f" must be {_named([form])}, not {_shown(value)}", near)


def _forms(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, or what an alias or an annotation stands for."""
    origin = typing.get_origin(annotation)
    if hasattr(annotation, "__value__"):
        yield from _forms(annotation.__value__)
    elif origin is typing.Annotated:
        yield from _forms(annotation.__origin__)
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _forms(member)
    else:
        yield annotation


def _is_model(form: Any) -> bool:
    return isinstance(form, type) and issubclass(form, BaseModel)


_KINDS: dict[Any, tuple[type, ...]] = {
    str: (str,), int: (int,), float: (int, float), bool: (bool,), type(None): (type(None),),
    dict: (dict,), list: (list,), tuple: (list,),
}  # fmt: skip


def _is_of(form: Any, value: Json) -> bool:
    """Say whether a value is of a form's kind; what is in it may still be wrong."""
    origin = typing.get_origin(form) or form
    if origin is Literal:
        return any(type(value) is type(a) for a in typing.get_args(form))
    if _is_model(form):
        return isinstance(value, dict)
    kinds = _KINDS.get(origin)
    return kinds is None or type(value) in kinds


_NAMES = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping",
    type(None): "null",
}  # fmt: skip
_PLURALS = {str: "strings", int: "whole numbers", float: "numbers", dict: "mappings", list: "lists"}


def _named(forms: Sequence[Any]) -> str:
    """Say what is expected: "a whole number or a list of whole numbers"."""
    said: dict[str, None] = {}
    for form in forms:
        origin = typing.get_origin(form) or form
        if origin is Literal:
            said |= dict.fromkeys(repr(a) for a in typing.get_args(form) if a is not None)
        elif origin in (list, tuple):
            inner = {_PLURALS.get(dict if _is_model(f) else typing.get_origin(f) or f)
                     for f in _forms(typing.get_args(form)[0])}  # fmt: skip
            named = sorted(name for name in inner if name)
            said[f"a list of {' or '.join(named)}" if named and None not in inner else "a list"] = None
        elif form is not type(None):
            said[_NAMES.get(dict if _is_model(form) else origin, "something else")] = None
    if "a number" in said:
        said.pop("a whole number", None)
    *others, last = said or {"left out": None}
    return f"{', '.join(others)} or {last}" if others else last


def _shown(value: Json) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return cut(value)


_LIMITS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "finite_number": "a finite number",
}
_LENGTHS = {
    "too_short": ("least", "min_length", "item"),
    "too_long": ("most", "max_length", "item"),
    "string_too_short": ("least", "min_length", "character"),
    "string_too_long": ("most", "max_length", "character"),
}


def _of_detail(detail: ErrorDetails, place: Place) -> _Misfit:
    """Return the sentence on what only a limit or a validator has found."""
    kind, context, shown = detail["type"], detail.get("ctx", {}), _shown(detail["input"])
    if kind == "value_error":
        said = detail["msg"].removeprefix("Value error, ")
        whole = isinstance(detail["input"], dict)
        return _Misfit(place, ": ", f": {said}" if whole else f" is invalid ({said[:1].lower() + said[1:]})")
    if kind in _LENGTHS:
        bound, key, unit = _LENGTHS[kind]
        number = context[key]
        return _Misfit(place, ": ", f" must have at {bound} {number} {unit}{'s' * (number != 1)}")
    if kind in _LIMITS:
        return _Misfit(place, ": ", f" must be {_LIMITS[kind].format(**context)}, not {shown}")
    if kind == "string_pattern_mismatch":
        return _Misfit(place, ": ", f" must match the pattern {context['pattern']}, not {shown}")
    return _Misfit(place, ": ", f" must not be {shown}")
