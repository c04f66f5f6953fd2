"""The text of a Triton model configuration, made from the ports of an ONNX file.

Source: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

if TYPE_CHECKING:
    import onnx

__all__ = ["dims", "refuse_other_than_tensors", "text"]

_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16", "object": "STRING",
}  # fmt: skip
"""Triton's name of each type: the table "Datatypes" of the source above."""


def refuse_other_than_tensors(model: onnx.ModelProto) -> None:
    """Raise StageError for a sequence or a map, and for a tensor whose number of dimensions isn't said."""
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.HasField("tensor_type"):
            kind = (value.type.WhichOneof("value") or "unknown").removesuffix("_type")
            raise StageError(f"{value.name!r} is a {kind}, and Triton takes tensors only",
                             fix="export the model without it, e.g. with zipmap off")  # fmt: skip
        if not value.type.tensor_type.HasField("shape"):
            raise StageError(f"the ONNX file doesn't say how many dimensions {value.name!r} has",
                             fix="infer the shapes first: onnx.optimize")  # fmt: skip


def dims(port: Mapping[str, Any], *, batched: bool) -> list[int]:
    """Return a port's dimensions as Triton counts them: without the batch that it makes itself."""
    return list(port["shape"][1:] if batched else port["shape"])


def text(
    name: str,
    ports: Sequence[Sequence[Mapping[str, Any]]],
    batch: int,
    *,
    queue_us: int | None,
    labels: Mapping[str, str],
) -> str:
    """Return config.pbtxt for the ports of inputs and of outputs; `labels` names outputs' files.

    Raises StageError for a type or a shape that Triton doesn't know.
    """
    inputs, outputs = ports
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {batch}",
        *(_port("input", port, batched=batch > 0) for port in inputs),
        *(_port("output", port, batched=batch > 0, labels=labels.get(port["name"])) for port in outputs),
    ]
    if queue_us is not None:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {queue_us} }}")
    return "".join(f"{line}\n" for line in lines)


def _port(kind: str, port: Mapping[str, Any], *, batched: bool, labels: str | None = None) -> str:
    sizes, dtype = dims(port, batched=batched), _TYPES.get(port["dtype"])
    if dtype is None:
        raise StageError(f"{port['name']!r} has the type {port['dtype']}, which Triton doesn't have")
    if not sizes or 0 in sizes:
        raise StageError(f"{port['name']!r} has the shape {port['shape']}, which Triton can't describe")
    fields = [
        f"name: {_quoted(port['name'])}",
        f"data_type: TYPE_{dtype}",
        f"dims: [ {', '.join(str(size) for size in sizes)} ]",
        *([f"label_filename: {_quoted(labels)}"] if labels else []),
    ]
    return f"{kind} [ {{ {'  '.join(fields)} }} ]"


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
