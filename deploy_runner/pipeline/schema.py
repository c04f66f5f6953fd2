"""The JSON Schema of pipeline.yaml, and descriptions of the stage types, from their models."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..registry import Registry, StageType
from ..sdk import Stage
from ..types import Json
from . import interface
from .spec import PipelineSpec

__all__ = ["describe_stage_types", "json_schema"]

_REFERENCE = {"type": "string", "pattern": r"\$\{\{.*\}\}", "description": "a reference"}
_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_ROW = {"type": "object", "minProperties": 1, "additionalProperties": _SCALAR}
_ROWS = {"anyOf": [{"type": "array", "items": _ROW}, _REFERENCE]}
_MATRIX = {
    "type": "object",
    "properties": {
        "include": _ROWS | {"description": "values to add to combinations, or combinations of their own"},
        "exclude": _ROWS | {"description": "combinations that are left out"},
    },
    "additionalProperties": {"anyOf": [{"type": "array", "items": _SCALAR, "minItems": 1}, _REFERENCE]},
}


def json_schema(root: Path) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a pipeline in the folder `root`.

    Each stage is held to the inputs, parameters and outputs of the type that it uses; wherever a
    parameter may stand, a `${{ … }}` reference may too.
    """
    schema = PipelineSpec.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    base = definitions.pop("StageSpec")
    types = Registry(root).all()
    params, shared = _params_schemas(types)
    definitions |= shared
    base["properties"]["uses"]["enum"] = [kind.cls.uses for kind in types]
    base["properties"]["matrix"]["anyOf"] = [_MATRIX, _REFERENCE]
    base["allOf"] = [_rule(kind, params[kind.cls.uses]) for kind in types]
    schema["properties"]["stages"]["additionalProperties"] = base
    schema["properties"]["stages"]["propertyNames"] = {"pattern": "^[A-Za-z_][A-Za-z0-9_-]*$"}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deploy-runner pipeline",
    }
    return head | {k: v for k, v in schema.items() if k != "title"}


def _params_schemas(types: list[StageType]) -> tuple[dict[str, Any], dict[str, Any]]:
    wanted = [(kind.cls.Params, "validation") for kind in types]
    _, whole = models_json_schema(wanted, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    shared = {name: _with_references(d) for name, d in whole.get("$defs", {}).items()}
    own: dict[str, Any] = {}
    for kind in types:
        local = kind.cls.Params.model_json_schema(ref_template="#/$defs/{model}")
        shared |= {n: _with_references(d) for n, d in local.pop("$defs", {}).items()}
        own[kind.cls.uses] = _with_references(local)
    used = {name for name in shared if not name.endswith("Params") and "__" not in name}
    return own, {name: shared[name] for name in sorted(used)}


def _with_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Let a reference stand for each property, and drop titles, which repeat the names."""
    schema = {key: value for key, value in schema.items() if key != "title"}
    if "oneOf" in schema:  # Not a model: an alias, whose parts may nest.
        return {"anyOf": [*schema.pop("oneOf"), _REFERENCE]} | schema
    properties = schema.get("properties", {})
    schema["properties"] = {name: _or_reference(value) for name, value in properties.items()}
    return schema


def _or_reference(value: dict[str, Any]) -> dict[str, Any]:
    value = {key: part for key, part in value.items() if key != "title"}
    kept = {key: value.pop(key) for key in ("description", "default") if key in value}
    if value.get("type") == "string" and not {"pattern", "enum", "const", "maxLength"} & set(value):
        return value | kept
    choices = value.pop("anyOf", None) or value.pop("oneOf", None) or [value]
    return {"anyOf": [*choices, _REFERENCE]} | kept


def _rule(kind: StageType, params: dict[str, Any]) -> dict[str, Any]:
    about = "\n\n".join(text for text in (kind.summary, _rest(kind.cls.__doc__ or "")) if text)
    parts = {"with": params | {"description": about}, "inputs": _inputs_schema(kind)}
    then: dict[str, Any] = {"properties": parts}
    needed = [part for part in ("with", "inputs") if then["properties"][part].get("required")]
    if needed:
        then["required"] = needed
    return {
        "if": {"properties": {"uses": {"const": kind.cls.uses}}, "required": ["uses"]},
        "then": then,
    }


def _inputs_schema(kind: StageType) -> dict[str, Any]:
    one = {"type": "string"}
    shapes = interface.input_shapes(kind.cls)
    forms: dict[str, Any] = {
        "one": one,
        "dict": {"anyOf": [{"type": "object", "additionalProperties": one}, one]},
        "list": {"anyOf": [{"type": "array", "items": one}, one]},
    }
    return {
        "type": "object",
        "properties": {n: {**forms[s.container], "description": s.description} for n, s in shapes.items()},
        "required": [name for name, shape in shapes.items() if shape.required],
        "additionalProperties": interface.is_open(kind.cls.Inputs),
    }


def describe_stage_types(root: Path) -> list[dict[str, Json]]:
    """Return every stage type of a project as plain data, for `stages` and the docs."""
    return [_described(kind) for kind in Registry(root).all()]


def _described(kind: StageType) -> dict[str, Json]:
    cls = kind.cls
    return {
        "uses": cls.uses,
        "summary": kind.summary,
        "description": _rest(cls.__doc__ or ""),
        "extra": cls.extra,
        "origin": kind.origin,
        "inputs": list(_inputs(cls)),
        "params": list(_members(cls.Params)),
        "outputs": list(_outputs(cls)),
        "example": kind.example,
    }


def _inputs(cls: type[Stage]) -> Iterator[Json]:
    if interface.is_open(cls.Inputs):
        yield _any_name(cls.Inputs, "file or folder")
    for name, shape in interface.input_shapes(cls).items():
        yield {
            "name": name,
            "type": _shape_name(shape),
            "required": shape.required,
            "default": "none",
            "description": shape.description,
        }


def _outputs(cls: type[Stage]) -> Iterator[Json]:
    if interface.is_open(cls.Outputs):
        yield _any_name(cls.Outputs, "path")
    for name, output in interface.output_specs(cls).items():
        said = cls.Outputs.model_fields[name].description or ""
        yield {
            "name": name,
            "type": output.kind,
            "required": not output.optional,
            "default": "optional",
            "description": f"{output.path}: {said}".rstrip(": "),
        }


def _any_name(model: type[BaseModel], kind: str) -> Json:
    """Return the entry for members that the user names; the model says what they are."""
    said = (model.__doc__ or "").strip()
    return {"name": "NAME", "type": kind, "required": False, "default": "none", "description": said}


def _rest(docstring: str) -> str:
    """Return what follows the first line, a line for each paragraph."""
    paragraphs = inspect.cleandoc(docstring).partition("\n")[2].strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _shape_name(shape: interface.InputShape) -> str:
    kinds = " or ".join(sorted(shape.kinds))
    return {"one": kinds, "dict": f"{kinds}, by name", "list": f"list of {kinds}"}[shape.container]


def _members(model: type[BaseModel]) -> Iterator[dict[str, Json]]:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        yield {
            "name": name,
            "type": _type_name(field.annotation),
            "required": field.is_required(),
            "default": _default_name(default),
            "description": field.description or "",
        }


def _default_name(value: Any) -> str:
    names = {None: "none", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "none"
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return " or ".join(str(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type_name(arguments[1])}"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if arguments:
        return " or ".join(_type_name(a) for a in arguments if a is not type(None))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())
