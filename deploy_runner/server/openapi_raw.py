"""What the OpenAPI description says of raw input and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .answered import FORM
from .codecs import JSON
from .protocol_raw import ANSWER
from .raw.rawio import RawIo
from .raw.requests import BINARY

__all__ = ["ANSWER_TENSOR", "answers", "bodies", "tensors"]

Schema = dict[str, Any]

_FILE: Schema = {"type": "string", "format": "binary"}
_CODED: Schema = {"type": "string", "contentEncoding": "base64"}
_NUMBER: Schema = {"type": ["number", "null"]}
"""What isn't finite is answered as null."""
_TYPES: Mapping[str, Schema] = {
    "number": {"type": "number"}, "flag": {"enum": [True, False, 0, 1]},
    "category": {"type": ["string", "integer"]},
}  # fmt: skip
_ANSWERS: Mapping[str, Schema] = {
    "classes": {"prediction": {"type": ["string", "integer"]}, "score": _NUMBER},
    "labels": {"prediction": {"type": "array", "items": {"type": ["string", "integer"]}}},
    "number": {"prediction": {"type": ["number", "null", "array"]}},
    "embedding": {"embedding": {"type": "array", "items": _NUMBER}},
    "boxes": {"objects": {"type": "array", "items": {"type": "object"}}},
    "mask": {"size": {"type": "array", "items": {"type": "integer"}}, "png": _CODED},
}


def bodies(io: RawIo) -> dict[str, Schema]:
    """Return content type → schema of the bodies that raw input may have."""
    sample = {"anyOf": _samples(io)}
    several = {"type": "array", "minItems": 1, "items": sample}
    around = [
        {"type": "object", "required": [key], "additionalProperties": False,
         "properties": {key: {"anyOf": [sample, several]}}}
        for key in ("data", "instances")
    ]  # fmt: skip
    found: dict[str, Schema] = {JSON: {"anyOf": [sample, several, *around]}} if io.kinds.fields else {}
    for kind in io.kinds.types:
        found[kind] = {"type": "string"} if kind.startswith("text/") else _FILE
    if io.kinds.fields:
        parts = {field: _FILE if field in BINARY else {"type": "string"} for field in io.kinds.fields}
        found[FORM] = {"type": "object", "properties": parts}
    return found


def tensors(io: RawIo) -> Schema:
    """Return the schema of raw input by the Open Inference Protocol."""
    items = [_bytes_tensor({"const": field}) for field in io.kinds.fields]
    count = len(io.kinds.fields)
    return {"type": "array", "minItems": count, "maxItems": count, "items": {"anyOf": items}}


def _bytes_tensor(name: Schema) -> Schema:
    sizes = {"type": "array", "items": {"type": "integer"}}
    texts = {"type": "array", "items": {"type": "string"}}
    properties = {"name": name, "datatype": {"const": "BYTES"}, "shape": sizes, "data": texts}
    return {"type": "object", "required": ["name", "shape", "datatype"], "properties": properties}


ANSWER_TENSOR: Schema = {"type": "array", "items": _bytes_tensor({"const": ANSWER})}


def answers(io: RawIo) -> list[Schema]:
    """Return the schemas of one answer, and of several."""
    properties = _ANSWERS.get(io.spec["answer"].get("kind", ""))
    one: Schema = {}
    if properties is not None:
        one = {"type": "object", "required": list(properties), "properties": properties}
    several = {"type": "object", "required": ["predictions"], "additionalProperties": False,
               "properties": {"predictions": {"type": "array", "items": one}}}  # fmt: skip
    return [one, several]


def _samples(io: RawIo) -> list[Schema]:
    """Return the schemas of one sample in JSON."""
    fields: dict[str, Schema] = {field: _field(io, field) for field in io.kinds.fields}
    pairs = "text" in fields and io.spec["text"]["pairs"]
    required = [*fields, "text_pair"] if pairs else list(fields)
    properties = fields | ({"text_pair": {"type": "string"}} if pairs else {})
    found: list[Schema] = [
        {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
    ]
    if len(fields) == 1 and not pairs:
        (field,) = fields
        if field == "text" or field in BINARY:
            found.append(fields[field])
        elif field == "row":
            found.append(fields["row"])
    return found


def _field(io: RawIo, field: str) -> Schema:
    if field == "row":
        columns = io.spec["row"]["columns"]
        return {
            "type": "object",
            "required": [column["name"] for column in columns if column["missing"] is None],
            "properties": {column["name"]: _column(column) for column in columns},
            "additionalProperties": False,
        }
    if field == "data":
        return {}
    return _CODED if field in BINARY else {"type": "string"}


def _column(column: Mapping[str, Any]) -> Schema:
    known = column["kind"] == "category" and column["unknown"] is None
    value: Schema = {"enum": column["vocabulary"]} if known else dict(_TYPES[column["kind"]])
    return value if column["missing"] is None else {"anyOf": [value, {"type": "null"}]}
