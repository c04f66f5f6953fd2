"""Read what a stage type's models declare: the shapes of its inputs, outputs and code."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..sdk import CodeReference, PathKind, Stage
from ..types import Json, Kind, OutputSpec

__all__ = ["InputShape", "code_references", "input_shapes", "is_open", "output_specs"]


@dataclass(frozen=True, slots=True)
class InputShape:
    """One declared input: a single path, or a mapping or list of paths."""

    container: Literal["one", "dict", "list"]
    kinds: frozenset[Kind]
    required: bool
    description: str


def is_open(model: type[BaseModel]) -> bool:
    """Say whether the user names the members."""
    return model.model_config.get("extra") == "allow"


def input_shapes(stage: type[Stage]) -> Mapping[str, InputShape]:
    """Return the declared inputs of a stage type by name."""
    return {
        name: InputShape(_container(field), _kinds(field), field.is_required(), field.description or "")
        for name, field in stage.Inputs.model_fields.items()
    }


def _container(field: FieldInfo) -> Literal["one", "dict", "list"]:
    origins = {typing.get_origin(t) for t in (field.annotation, *typing.get_args(field.annotation))}
    if dict in origins:
        return "dict"
    return "list" if list in origins else "one"


def _kinds(field: FieldInfo) -> frozenset[Kind]:
    metadata = [*field.metadata, *_metadata(field.annotation)]
    return frozenset(m.kind for m in metadata if isinstance(m, PathKind))


def _metadata(annotation: Any) -> Iterator[object]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in typing.get_args(annotation):
        yield from _metadata(argument)


def output_specs(stage: type[Stage]) -> Mapping[str, OutputSpec]:
    """Return the declared outputs of a stage type by name."""
    specs = {}
    for name, field in stage.Outputs.model_fields.items():
        (kind,) = _kinds(field)
        optional = type(None) in typing.get_args(field.annotation)
        specs[name] = OutputSpec(str(field.default), kind, optional)
    return specs


def code_references(model: BaseModel) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield (path of the parameter, reference) of every `Code` parameter that is set."""
    for name, marked in _code_fields(type(model)):
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from (((name, *path), code) for path, code in code_references(value))
        elif marked:
            yield from (((name, *path), code) for path, code in _strings(value))


@cache
def _code_fields(model: type[BaseModel]) -> tuple[tuple[str, bool], ...]:
    """Return each field's name, and whether it is declared as `Code`."""
    return tuple(
        (name, any(isinstance(m, CodeReference) for m in (*field.metadata, *_metadata(field.annotation))))
        for name, field in model.model_fields.items()
    )


def _strings(value: Json) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield (), value
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from (((index, *path), text) for path, text in _strings(child))
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from (((key, *path), text) for path, text in _strings(child))
