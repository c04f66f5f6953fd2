"""ONNX files as strangers make them, by hand, and what model.onnx makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage

FLOAT, FLOAT16, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
Dims = Sequence[int | str | None]


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(sum(shape)).standard_normal(shape) / max(1, shape[0]) ** 0.5
    return numpy_helper.from_array(values.astype(np.float32), name)


def samples(count: int) -> Any:
    return np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)


def whole(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), **attributes)


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: Mapping[str, tuple[int, Dims]],
    outputs: Mapping[str, tuple[int, Dims]], weights: Sequence[onnx.TensorProto] = (),
    *, opset: int = 17, ir: int = 8,
) -> Path:  # fmt: skip
    """Write a file; weights are inputs too below IR 4."""
    given = [helper.make_tensor_value_info(n, t, d) for n, (t, d) in inputs.items()]
    if ir < 4:
        given += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    made = [helper.make_tensor_value_info(n, t, d) for n, (t, d) in outputs.items()]
    graph = helper.make_graph(nodes, "g", given, made, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def take(folder: Path, model: Path, *, real: Path | None = None, **params: Any) -> StageRun:
    inputs = {"model": model} | ({"samples": real} if real else {})
    return run_stage(stage("model.onnx"), folder / "taken", inputs=inputs, params=params)


def described(made: StageRun) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made["model"] / "bundle.json").read_text())
    return found


def details(made: StageRun) -> dict[str, str]:
    return {name: line["detail"] for name, line in json.loads(made["checklist"].read_text()).items()}


def dims_of(values: Any) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in values}


def arrays_of(made: StageRun) -> dict[str, Any]:
    return dict(np.load(made["model"] / "reference.npz"))


def sizes_of(made: StageRun, name: str, axis: int) -> set[int]:
    return {a.shape[axis] for key, a in arrays_of(made).items() if key.endswith(f"/in/{name}")}


def perceptron(folder: Path, dims: Dims = ("batch", 8), **how: Any) -> Path:
    return save(
        folder / "mlp.onnx",
        [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
        {"x": (FLOAT, dims)}, {"y": (FLOAT, (dims[0], 4))},
        [weight("w", 8, 32), weight("v", 32, 4)], **how,
    )  # fmt: skip


def voice(folder: Path, dims: Dims = ("batch", "T")) -> Path:
    """A conv stack of stride 320 over raw sound."""
    nodes = [
        node("Unsqueeze", "x one", "a"),
        node("Conv", "a c1", "b", strides=[5]), node("Relu", "b", "c"),
        node("Conv", "c c2", "d", strides=[8]), node("Relu", "d", "e"),
        node("Conv", "e c3", "f", strides=[8]), node("Transpose", "f", "g", perm=[0, 2, 1]),
        node("MatMul", "g w", "y"),
    ]  # fmt: skip
    weights = [
        whole("one", 1),
        weight("c1", 8, 1, 10),
        weight("c2", 8, 8, 8),
        weight("c3", 8, 8, 8),
        weight("w", 8, 5),
    ]
    return save(
        folder / "voice.onnx", nodes, {"x": (FLOAT, dims)}, {"y": (FLOAT, ("batch", "frames", 5))}, weights
    )


def pictures(folder: Path, size: int, dims: Dims) -> Path:
    """A net whose last layer fits one size of pictures, or one more."""
    side = (size + 1) // 2
    nodes = [
        node("Conv", "x c", "a", strides=[2, 2], pads=[1, 1, 1, 1]), node("Relu", "a", "b"),
        node("Flatten", "b", "f"), node("Gemm", "f w", "y"),
    ]  # fmt: skip
    weights = [weight("c", 4, 3, 3, 3), weight("w", 4 * side * side, 10)]
    return save(folder / "flat.onnx", nodes, {"x": (FLOAT, dims)}, {"y": (FLOAT, (dims[0], 10))}, weights)


def tokens(folder: Path, mask: Dims = ("batch", "length"), ids: Dims = ("batch", "length")) -> Path:
    """The mean of looked-up rows over what a mask leaves: nan where a row of it is empty."""
    nodes = [
        node("Constant", "", "table", value=weight("t", 50, 16)),
        node("Gather", "table input_ids", "rows"), node("Cast", "attention_mask", "m", to=FLOAT),
        node("Unsqueeze", "m two", "m3"), node("Mul", "rows m3", "kept"),
        node("ReduceSum", "kept one", "sum", keepdims=0), node("ReduceSum", "m3 one", "count", keepdims=0),
        node("Div", "sum count", "mean"), node("MatMul", "mean w", "y"),
    ]  # fmt: skip
    return save(
        folder / "tokens.onnx", nodes, {"input_ids": (INT64, ids), "attention_mask": (INT64, mask)},
        {"y": (FLOAT, (ids[0], 3))}, [whole("one", 1), whole("two", 2), weight("w", 16, 3)],
    )  # fmt: skip
