"""The Open Inference Protocol v2 over REST, with the binary tensor data extension.

Sources: https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md) and
https://github.com/triton-inference-server/server (docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .codecs import JSON, parse_json, refuse_mixed, to_json
from .ports import Arrays, Port, Ports, as_array
from .problems import BadRequest, Invalid, Problem

__all__ = ["BINARY", "HEADER_LENGTH", "Wanted", "decode_infer", "encode_infer", "split"]

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"


class Wanted(NamedTuple):
    """What a request wants back: its id, and the outputs, each with whether as binary data."""

    id: str | None
    outputs: Mapping[str, bool]


def split(body: bytes, header_length: str) -> tuple[dict[str, Any], memoryview]:
    """Return an inference request, and the binary data behind it. Raises Refused."""
    length = len(body)
    if header_length:
        length = int(header_length) if header_length.isdecimal() else -1
        if not 0 <= length <= len(body):
            said = f"the header length {header_length!r} doesn't match a body of {len(body)} bytes"
            raise BadRequest(Problem(("header", HEADER_LENGTH), said))
    request = parse_json(body[:length])
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise BadRequest(Problem(("body", "inputs"), "a list of tensors is required"))
    for tensor in request["inputs"]:
        refuse_mixed(body[:length], tensor)
    return request, memoryview(body)[length:]


def decode_infer(
    request: Mapping[str, Any], raw: memoryview, inputs: Ports, outputs: Ports
) -> tuple[Arrays, Wanted]:
    """Return the arrays of an inference request, and what it requests. Raises Refused."""
    arrays = _tensors(request["inputs"], raw, {port.name: port for port in inputs})
    return arrays, _wanted(request, outputs)


def _tensors(tensors: list[Any], raw: memoryview, known: Mapping[str, Port]) -> Arrays:
    arrays: Arrays = {}
    problems: list[Problem] = []
    start = 0
    for index, tensor in enumerate(tensors):
        loc = ("body", "inputs", index)
        name, shape, size = _described(tensor, loc, known, arrays)
        try:
            if size is None:
                arrays[name] = _from_data(tensor, known[name], shape, (*loc, "data"))
            else:
                arrays[name] = _from_bytes(raw[start : start + size], known[name], shape, size, loc)
                start += size
        except Invalid as refused:
            problems += refused.problems
    if start != len(raw) and not problems:
        problems.append(
            Problem(("body",), f"the body has {len(raw)} bytes of binary data, but {start} were declared")
        )
    if problems:
        raise Invalid(*problems)
    return arrays


def _described(
    tensor: Any, loc: tuple[str | int, ...], known: Mapping[str, Port], seen: Arrays
) -> tuple[str, list[int], int | None]:
    """Return a tensor's name, shape, and its size as binary data in bytes, if it is that."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise BadRequest(Problem(loc, "a tensor needs name, shape, datatype and data"))
    name, shape, datatype = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    if name not in known or name in seen:
        said = f"the input {name!r} is given twice" if name in seen else f"unknown input {name!r}"
        raise Invalid(Problem((*loc, "name"), f"{said}, the model has {', '.join(map(repr, known))}"))
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequest(Problem((*loc, "shape"), f"input {name!r}: a list of sizes is required"))
    port = known[name]
    if datatype != port.datatype:
        said = f"input {name!r} has the datatype {port.datatype}; {datatype!r} was given"
        raise Invalid(Problem((*loc, "datatype"), said))
    if not port.fits(shape):
        said = f"input {name!r} takes {port}; the shape {shape} was given"
        raise Invalid(Problem((*loc, "shape"), said))
    size = (tensor.get("parameters") or {}).get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise BadRequest(Problem((*loc, "parameters"), "binary_data_size is not a number of bytes"))
    return name, shape, size


def _from_data(tensor: Mapping[str, Any], port: Port, shape: list[int], loc: tuple[str | int, ...]) -> Any:
    if "data" not in tensor:
        raise Invalid(Problem(loc, f"input {port.name!r} has neither data nor binary_data_size"))
    flat = as_array(tensor["data"], Port(port.name, port.dtype, port.shape), loc, finite=True)
    if flat.size != int(np.prod(shape)):
        said = f"input {port.name!r}: {flat.size} numbers were given for the shape {shape}"
        raise Invalid(Problem(loc, said))
    return flat.reshape(shape)


def _from_bytes(raw: memoryview, port: Port, shape: list[int], size: int, loc: tuple[str | int, ...]) -> Any:
    dtype = np.dtype(port.dtype).newbyteorder("<")
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != needed or len(raw) != size or needed == 0:
        said = f"input {port.name!r} of shape {shape} has {needed} bytes; {min(size, len(raw))} were given"
        raise Invalid(Problem((*loc, "parameters", "binary_data_size"), said))
    return np.frombuffer(raw, dtype).astype(port.dtype, copy=False).reshape(shape)


def _wanted(request: Mapping[str, Any], outputs: Ports) -> Wanted:
    binary = bool((request.get("parameters") or {}).get("binary_data_output", False))
    wanted: dict[str, bool] = {}
    for index, output in enumerate(request.get("outputs") or []):
        name = output.get("name") if isinstance(output, dict) else None
        if name not in outputs.names:
            said = f"unknown output {name!r}, the outputs are {outputs}"
            raise Invalid(Problem(("body", "outputs", index), said))
        wanted[name] = bool((output.get("parameters") or {}).get("binary_data", binary))
    id_ = request.get("id")
    return Wanted(id_ if isinstance(id_, str) else None, wanted or dict.fromkeys(outputs.names, binary))


def encode_infer(
    arrays: Arrays, wanted: Wanted, model: str, version: str, outputs: Ports
) -> tuple[bytes, str, dict[str, str]]:
    """Return the response's body, content type and further headers."""
    datatypes = {port.name: port.datatype for port in outputs}
    tensors, raw = [], []
    for name, binary in wanted.outputs.items():
        array = arrays[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": list(array.shape)}
        if binary:
            data = np.ascontiguousarray(array, np.dtype(array.dtype).newbyteorder("<")).tobytes()
            raw.append(data)
            tensor["parameters"] = {"binary_data_size": len(data)}
        else:
            tensor["data"] = array.ravel()
        tensors.append(tensor)
    response: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if wanted.id is not None:
        response["id"] = wanted.id
    head = to_json(response)
    if not raw:
        return head, JSON, {}
    return b"".join([head, *raw]), BINARY, {HEADER_LENGTH: str(len(head))}
