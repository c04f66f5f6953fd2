"""The OpenAPI description, with the model's real shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import openapi_raw
from .codecs import CSV, JSON, NPY, NPZ
from .ports import Port, Ports
from .raw.rawio import RawIo
from .service import Service

__all__ = ["openapi"]

_PROBLEMS = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["loc", "msg"],
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                },
            },
        }
    },
}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REFUSALS = {
    "400": "The body can't be read",
    "406": "No accepted response type can be written",
    "408": "The request didn't arrive within the timeout",
    "413": "The body is too large",
    "415": "The content type, or its encoding, isn't read",
    "422": "The model can't take these inputs",
    "429": "The queue is full; Retry-After says when to retry",
    "431": "The headers are too large, or too many",
    "500": "The model failed",
    "503": "The request waited too long, or the server is shutting down",
    "504": "The model took too long",
}
_OF_PROTOCOL = [status for status in _REFUSALS if status not in ("406", "422")]
_OF_READING = ("408", "431")


def openapi(service: Service) -> dict[str, Any]:
    """Return the description of the model that is served now."""
    live = service.live
    model = f"/v2/models/{service.name}"
    predict = _predict(live.inputs, live.outputs, live.io)
    paths: dict[str, Any] = {
        "/predict": {"post": {**predict, "operationId": "predict", "summary": "Run the model"}},
        "/invocations": {
            "post": {**predict, "operationId": "invocations", "summary": "Run the model (SageMaker)"}
        },
        f"{model}/infer": {"post": _infer(live.inputs, live.outputs, live.io)},
    }
    for path, summary in (
        ("/ping", "Is the model ready? (SageMaker)"), ("/metrics", "Metrics in Prometheus format"),
        ("/v2", "The server's metadata"), ("/v2/health/live", "Is the server alive?"),
        ("/v2/health/ready", "Is the server ready?"), (model, "The model's metadata"),
        (f"{model}/ready", "Is the model ready?"),
    ):  # fmt: skip
        responses = {"200": {"description": "Yes"}}
        responses |= {status: {"description": _REFUSALS[status]} for status in _OF_READING}
        if path == "/ping" or path.endswith("/ready"):
            responses["503"] = {"description": "Not yet, or not any more"}
        paths[path] = {"get": {"summary": summary, "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {"title": service.name, "version": live.version, "x-digest": live.model.artifact.digest},
        "paths": paths,
    }


def _predict(inputs: Ports, outputs: Ports, io: RawIo | None) -> dict[str, Any]:
    named = {"type": "object", "required": ["inputs"], "additionalProperties": False,
             "properties": {"inputs": _object(inputs)}}  # fmt: skip
    request: dict[str, Any] = {
        JSON: {"schema": named},
        NPZ: {"schema": {"type": "string", "format": "binary"}},
    }
    if len(inputs) == 1:
        request[JSON] = {"schema": {"anyOf": [named, _listed(inputs[0])]}}
        request |= {NPY: request[NPZ], CSV: {"schema": {"type": "string"}}}
    response: dict[str, Any] = {"type": "object", "required": ["outputs"],
                                "properties": {"outputs": _object(outputs, answered=True)}}  # fmt: skip
    said = "The outputs by name"
    if io is not None:
        _add_raw(request, io)
        response = {"anyOf": [response, *openapi_raw.answers(io)]}
        said += ", or the answer to raw input"
    responses: dict[str, Any] = {"200": {"description": said, "content": {JSON: {"schema": response}}}}
    for status, text in _REFUSALS.items():
        responses[status] = {"description": text, "content": {JSON: {"schema": _PROBLEMS}}}
    return {"requestBody": {"required": True, "content": request}, "responses": responses}


def _add_raw(request: dict[str, Any], io: RawIo) -> None:
    for kind, schema in openapi_raw.bodies(io).items():
        given = request.get(kind, {}).get("schema")
        request[kind] = {"schema": {"anyOf": [given, schema]} if given else schema}


def _infer(inputs: Ports, outputs: Ports, io: RawIo | None) -> dict[str, Any]:
    taken = {**_tensors(inputs), "minItems": len(inputs), "maxItems": len(inputs)}
    given = _tensors(outputs)
    if io is not None:
        taken = {"anyOf": [taken, openapi_raw.tensors(io)]}
        given = {"anyOf": [given, openapi_raw.ANSWER_TENSOR]}
    request = {"type": "object", "required": ["inputs"],
               "properties": {"id": {"type": "string"}, "inputs": taken}}  # fmt: skip
    response = {"type": "object", "required": ["model_name", "outputs"], "properties": {
        "model_name": {"type": "string"}, "model_version": {"type": "string"},
        "id": {"type": "string"}, "outputs": given}}  # fmt: skip
    responses: dict[str, Any] = {
        "200": {"description": "The outputs", "content": {JSON: {"schema": response}}}
    }
    for status in _OF_PROTOCOL:
        responses[status] = {"description": _REFUSALS[status], "content": {JSON: {"schema": _ERROR}}}
    return {
        "operationId": "infer",
        "summary": "Run the model (Open Inference Protocol v2)",
        "requestBody": {"required": True, "content": {JSON: {"schema": request}}},
        "responses": responses,
    }


def _tensors(ports: Ports) -> dict[str, Any]:
    def tensor(port: Port) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["name", "shape", "datatype"],
            "properties": {
                "name": {"const": port.name},
                "datatype": {"const": port.datatype},
                "shape": {"type": "array", "items": {"type": "integer"}, "description": port.dims},
                "data": {"type": "array"},
            },
        }

    return {"type": "array", "items": {"anyOf": [tensor(port) for port in ports]}}


def _object(ports: Ports, *, answered: bool = False) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ports.names,
        "properties": {
            port.name: {**_nested(port.shape, _element(port.dtype, answered)), "description": str(port)}
            for port in ports
        },
        "additionalProperties": False,
    }


def _listed(port: Port) -> dict[str, Any]:
    """Describe an input with its samples first."""
    shape = port.shape if not port.batch else (port.shape[port.batch], *port.sample)
    return {**_nested(shape, _element(port.dtype, answered=False)), "description": str(port)}


def _element(dtype: str, answered: bool) -> dict[str, Any]:
    """Return the values of a type: those taken, floats up to what is rounded to its largest, or answered.

    What isn't finite is answered as null.
    """
    if dtype == "bool":
        return {"type": "boolean"}
    if not dtype.startswith("float"):
        whole = np.iinfo(dtype)
        return {"type": "integer", "minimum": int(whole.min), "maximum": int(whole.max)}
    if answered or dtype == "float64":
        return {"type": ["number", "null"] if answered else "number"}
    info = np.finfo(dtype)
    beyond = float(info.max) + float(info.eps) / 2 * 2.0 ** (int(info.maxexp) - 1)
    return {"type": "number", "exclusiveMinimum": -beyond, "exclusiveMaximum": beyond}


def _nested(shape: Sequence[int], element: dict[str, Any]) -> dict[str, Any]:
    if not shape:
        return element
    bounds = {"minItems": shape[0], "maxItems": shape[0]} if shape[0] >= 0 else {"minItems": 1}
    return {"type": "array", **bounds, "items": _nested(shape[1:], element)}
