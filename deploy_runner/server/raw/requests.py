"""Requests with raw input: which samples a body holds.

One picture is a body of its own (image/*, application/octet-stream), a text is text/plain, rows are
text/csv with a header line. In JSON a sample is {"image": base64}, {"text": "…"}, with {"text_pair": "…"},
{"row": {column: value}} or the columns themselves; lists of them, and {"data": …}, {"instances": […]} and
{"inputs": …} around them, are batches. {"b64": …} is binary, too.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .problems import BadInput, Malformed

__all__ = ["BINARY", "Given", "Kinds", "decoded_base64", "of_body", "of_json", "of_parts"]

BINARY = ("image", "audio")
_AROUND = ("data", "instances", "inputs")


@dataclass(frozen=True)
class Kinds:
    """What a sample has: its fields (image, audio, text, row, data), and the columns of a row."""

    fields: Collection[str]
    columns: Collection[str] = ()
    rows: Callable[[str], Sequence[Mapping[str, Any]]] | None = None

    @property
    def binary(self) -> str:
        """Return the field that holds bytes, "" where none does."""
        return next((field for field in (*BINARY, "data") if field in self.fields), "")

    @property
    def types(self) -> list[str]:
        """Return the content types of one sample's body, beside JSON and forms."""
        found = [f"{field}/*" for field in BINARY if field in self.fields or "data" in self.fields]
        found += ["text/plain"] if {"text", "data"} & set(self.fields) else []
        return found + (["text/csv"] if self.rows is not None else [])


@dataclass(frozen=True)
class Given:
    """The samples of a request, each field → value; `alone` where it is one and not a list of one."""

    samples: Sequence[Mapping[str, Any]]
    alone: bool

    def answer(self, answers: Sequence[Any]) -> Any:
        """Return what is answered: the only answer, or {"predictions": [answer, …]}."""
        return answers[0] if self.alone else {"predictions": list(answers)}


def of_body(
    body: bytes, content_type: str, kinds: Kinds, loads: Callable[[bytes], Any] = json.loads
) -> Given | None:
    """Return the samples of a body, None where it holds tensors or isn't for us. Raises BadInput."""
    kind = content_type.partition(";")[0].strip().lower()
    top = kind.partition("/")[0]
    if top in BINARY and top in kinds.fields:
        return Given([{top: body}], alone=True)
    if (top in BINARY or kind == "application/octet-stream") and kinds.binary:
        return Given([{kinds.binary: body}], alone=True)
    if kind == "text/plain" and (field := next((f for f in ("text", "data") if f in kinds.fields), "")):
        return Given([{field: _text(body)}], alone=True)
    if kind == "text/csv" and kinds.rows is not None:
        return Given([{"row": row} for row in kinds.rows(_text(body))], alone=False)
    if kind in ("application/json", ""):
        try:
            value = loads(body)
        except ValueError as error:
            raise Malformed(f"the body is not JSON: {str(error).partition(chr(10))[0]}") from None
        return of_json(value, kinds)
    return None


def of_parts(parts: Sequence[tuple[str, str, bytes]], kinds: Kinds) -> Given:
    """Return the samples of a form: name, content type and bytes of each part. Raises BadInput.

    A part is a field; several of one name, or of no known one, are several samples.
    """
    columns: dict[str, list[Any]] = {}
    row: dict[str, Any] = {}
    for name, kind, data in parts:
        if name in kinds.columns:
            row[name] = _text(data)
            continue
        top = kind.partition("/")[0]
        field = name if name in kinds.fields else top if top in kinds.fields else _only(kinds)
        if not field:
            raise BadInput(f"unknown field {name!r}, a sample has {_listed(kinds)}")
        value = _json(data) if field == "row" else data if field in (*BINARY, "data") else _text(data)
        columns.setdefault(field, []).append(value)
    if row:
        columns["row"] = [row]
    if not columns:
        raise BadInput(f"the form is empty, a sample has {_listed(kinds)}")
    counts = {len(values) for values in columns.values()}
    if len(counts) > 1:
        raise BadInput("the form has different numbers of samples in its fields")
    count = counts.pop()
    return Given([{f: v[i] for f, v in columns.items()} for i in range(count)], alone=count == 1)


def of_json(value: Any, kinds: Kinds) -> Given | None:
    """Return the samples of a value of JSON, None where it holds tensors. Raises BadInput."""
    if isinstance(value, dict) and len(value) == 1 and (key := next(iter(value))) in _AROUND:
        inside = value[key]
        if key == "data" and "data" in kinds.fields and not isinstance(inside, list):
            return Given([{"data": inside}], alone=True)
        if key != "inputs" or isinstance(inside, str) or _texts(inside):
            return of_json(inside, kinds)
        return None
    if isinstance(value, list):
        if not value:
            raise BadInput("the batch is empty")
        samples = [_sample(one, kinds) for one in value]
        if all(one is None for one in samples):
            return None
        return Given([_known(one, kinds) for one in samples], alone=False)
    if isinstance(value, dict) and (found := _by_field(value, kinds)):
        return found
    sample = _sample(value, kinds)
    return None if sample is None else Given([sample], alone=True)


def _by_field(value: Mapping[str, Any], kinds: Kinds) -> Given | None:
    """Return the samples of lists by field."""
    lists = bool(value) and all(key in kinds.fields and isinstance(v, list) for key, v in value.items())
    if "data" in kinds.fields or not lists:
        return None
    counts = {len(values) for values in value.values()}
    if len(counts) != 1 or counts == {0}:
        raise BadInput(
            "the batch is empty" if counts == {0} else "the fields have different numbers of samples"
        )
    singles = [{key: values[i] for key, values in value.items()} for i in range(counts.pop())]
    return Given([_known(_sample(one, kinds), kinds) for one in singles], alone=False)


def _sample(value: Any, kinds: Kinds) -> dict[str, Any] | None:
    """Return a sample by its fields, None where it is none."""
    if isinstance(value, str):
        if "text" in kinds.fields:
            return {"text": value}
        if kinds.binary in BINARY:
            return {kinds.binary: decoded_base64(value)}
    if isinstance(value, dict):
        if list(value) == ["b64"] and kinds.binary:
            return {kinds.binary: decoded_base64(value["b64"])}
        if value and all(key in (*kinds.fields, "text_pair") for key in value):
            found = {k: decoded_base64(v) if k in BINARY else v for k, v in value.items() if k != "text_pair"}
            if "text_pair" in value:
                found["text"] = [value.get("text"), value["text_pair"]]
            return found
        if "row" in kinds.fields and any(key in kinds.columns for key in value):
            return {"row": value}
    return {"data": value} if "data" in kinds.fields else None


def _known(sample: dict[str, Any] | None, kinds: Kinds) -> dict[str, Any]:
    if sample is None:
        raise BadInput(f"a sample of the batch is none: it has {_listed(kinds)}")
    return sample


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _only(kinds: Kinds) -> str:
    return next(iter(kinds.fields)) if len(kinds.fields) == 1 else ""


def _listed(kinds: Kinds) -> str:
    return ", ".join(map(repr, kinds.fields))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise Malformed("a part of the form is not JSON") from None


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the text is not UTF-8") from None


def decoded_base64(value: Any) -> bytes:
    """Return what base64, or a data URL, holds. Raises BadInput."""
    if not isinstance(value, str):
        raise BadInput("bytes are sent as text in base64")
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("the text is not base64") from None
