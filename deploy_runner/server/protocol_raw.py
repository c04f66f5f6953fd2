"""Raw input by the Open Inference Protocol v2: tensors of BYTES, named as a sample's fields.

An element is text in JSON (a picture's or sound's bytes in base64), or bytes after their length, four
bytes little-endian, in binary data. Source: https://github.com/triton-inference-server/server
(docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .codecs import JSON, to_json
from .problems import BadRequest, Invalid, Problem
from .protocol import BINARY, HEADER_LENGTH
from .raw.problems import BadInput
from .raw.requests import BINARY as FILES
from .raw.requests import Given, Kinds, decoded_base64

__all__ = ["ANSWER", "described", "encode_answers", "given_of", "has_bytes"]

ANSWER = "answer"
_LENGTH = 4


def has_bytes(request: Any) -> bool:
    """Say whether a request has raw input."""
    tensors = request.get("inputs") if isinstance(request, dict) else None
    return isinstance(tensors, list) and any(
        isinstance(t, dict) and t.get("datatype") == "BYTES" for t in tensors
    )


def described(kinds: Kinds) -> list[dict[str, Any]]:
    """Return the tensors of BYTES that a model takes, as its metadata lists tensors."""
    return [{"name": field, "datatype": "BYTES", "shape": [-1]} for field in kinds.fields]


def given_of(request: Mapping[str, Any], raw: memoryview, kinds: Kinds) -> Given:
    """Return the samples of a request, `raw` being its binary data. Raises Refused and BadInput."""
    columns: dict[str, list[Any]] = {}
    start = 0
    for index, tensor in enumerate(request["inputs"]):
        loc = ("body", "inputs", index)
        name = str(tensor.get("name")) if isinstance(tensor, dict) else ""
        if name not in kinds.fields or name in columns or tensor.get("datatype") != "BYTES":
            said = f"raw input is tensors of BYTES named {', '.join(map(repr, kinds.fields))}, once each"
            raise Invalid(Problem(loc, said))
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            elements = np.array(tensor.get("data"), dtype=object).ravel().tolist()
        elif type(size) is not int or not 0 <= size <= len(raw) - start:
            raise BadRequest(Problem((*loc, "parameters"), "binary_data_size doesn't match the body"))
        else:
            elements = _elements(bytes(raw[start : start + size]), loc)
            start += size
        shape = tensor.get("shape")
        if not isinstance(shape, list) or shape not in ([len(elements)], [len(elements), 1]):
            said = f"{name!r} has {len(elements)} elements; the shape is [{len(elements)}]"
            raise Invalid(Problem((*loc, "shape"), said))
        columns[name] = [_value(name, element) for element in elements]
    if start != len(raw):
        said = f"the body has {len(raw)} bytes of binary data, but {start} were declared"
        raise Invalid(Problem(("body",), said))
    counts = {len(values) for values in columns.values()}
    if len(counts) != 1 or counts == {0}:
        raise BadInput("the batch is empty, or its fields have different numbers of samples")
    return Given([{f: v[i] for f, v in columns.items()} for i in range(counts.pop())], alone=False)


def _elements(raw: bytes, loc: tuple[str | int, ...]) -> list[bytes]:
    found, start = [], 0
    while start < len(raw):
        length = int.from_bytes(raw[start : start + _LENGTH], "little")
        start += _LENGTH
        if start + length > len(raw):
            raise BadRequest(Problem(loc, "an element of BYTES is longer than its tensor"))
        found.append(raw[start : start + length])
        start += length
    return found


def _value(field: str, element: Any) -> Any:
    if field in FILES:
        return element if isinstance(element, bytes) else decoded_base64(element)
    try:
        text = element.decode("utf-8") if isinstance(element, bytes) else element
        return text if field == "text" else json.loads(text)
    except (UnicodeDecodeError, ValueError, TypeError):
        raise BadInput(f"an element of {field!r} is no {'text' if field == 'text' else 'JSON'}") from None


def encode_answers(
    answers: Sequence[Any], request: Mapping[str, Any], model: str, version: str
) -> tuple[bytes, str, dict[str, str]]:
    """Return the response's body, content type and further headers: a tensor of each answer as JSON."""
    texts = [to_json(answer) for answer in answers]
    tensor: dict[str, Any] = {"name": ANSWER, "datatype": "BYTES", "shape": [len(texts)]}
    response: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": [tensor]}
    if isinstance(request.get("id"), str):
        response["id"] = request["id"]
    wanted = [o for o in request.get("outputs") or () if isinstance(o, dict)]
    asked = [(o.get("parameters") or {}).get("binary_data") for o in wanted]
    usual = (request.get("parameters") or {}).get("binary_data_output", False)
    if not any(usual if one is None else one for one in asked or [usual]):
        tensor["data"] = [text.decode() for text in texts]
        return to_json(response), JSON, {}
    data = b"".join(len(text).to_bytes(_LENGTH, "little") + text for text in texts)
    tensor["parameters"] = {"binary_data_size": len(data)}
    head = to_json(response)
    return head + data, BINARY, {HEADER_LENGTH: str(len(head))}
