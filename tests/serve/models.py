"""Models to serve: the digits in three formats, and small ones of one kind each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import DIGITS

__all__ = [
    "Digits",
    "colours",
    "corner",
    "digits",
    "matmul_with_external_data",
    "other_weights",
    "scorer",
    "slow",
    "tokens",
    "two_outputs",
    "waves",
]


@dataclass(frozen=True, slots=True)
class Digits:
    """The example's model: its bundle with reference samples, as ONNX, TorchScript, and int8 in two ways."""

    bundle: Path
    onnx: Path
    torchscript: Path
    int8: Path
    dynamic: Path


def digits(folder: Path) -> Digits:
    """Convert examples/digits."""
    weights = run_stage(
        stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": DIGITS / "digits.pt"}
    )
    bundle = run_stage(
        stage("model.prepare"), folder / "b", project=DIGITS,
        inputs={"weights": weights["weights"], "samples": DIGITS / "heldout.npz"},
        params={"factory": "model.py:build", "example": {"shape": [1, 1, 8, 8]}, "expect_shape": [1, 10]},
    )["model"]  # fmt: skip
    exported = run_stage(stage("onnx.export"), folder / "o", inputs={"model": bundle})["model"]
    traced = run_stage(stage("torch.trace"), folder / "t", inputs={"model": bundle})["model"]
    calibrated = {"model": exported, "calibration": DIGITS / "calibration.npz"}
    int8 = run_stage(stage("onnx.quantize_static"), folder / "i", inputs=calibrated)["model"]
    referred = {"model": exported, "reference": bundle}
    dynamic = run_stage(stage("onnx.quantize_dynamic"), folder / "d", inputs=referred)["model"]
    return Digits(bundle, exported, traced, int8, dynamic)


def other_weights(model: Path, folder: Path) -> Path:
    """Write the same ONNX model with its last bias 1 higher: the shapes are the same, all answers differ."""
    proto = onnx.load(model / "model.onnx")
    bias = next(t for t in proto.graph.initializer if list(t.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    return _save(proto, folder)


def scorer(folder: Path) -> Path:
    """Write a model of `ids` (int64 [batch, 2]) and `weights` (float32 [batch, 2]): their products' sum."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["floats", "weights"], ["products"]),
            helper.make_node("ReduceSum", ["products", "axes"], ["score"], keepdims=0),
        ],
        "scorer",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 2]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["batch", 2]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    return _save(_model(graph), folder)


def scaled(folder: Path, factor: float) -> Path:
    """Write a model of `x` (float32 [batch, 3]) that answers `y`, its product with a factor."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array([factor], np.float32), "factor")],
    )
    return _save(_model(graph), folder)


def slow(folder: Path, base: int = 1000) -> Path:
    """Write a model of `x` (float32 [batch, 2]) that sums rows, after `base` rounds and its largest number more."""
    width = 64
    matrix = numpy_helper.from_array(np.eye(width, dtype=np.float32), "matrix")
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [width, width])
    turned = helper.make_tensor_value_info("next", TensorProto.FLOAT, [width, width])
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "matrix"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            state,
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), turned],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Add", ["largest", "base"], ["sum_of_both"]),
            helper.make_node("Cast", ["sum_of_both"], ["rounds"], to=TensorProto.INT64),
            helper.make_node("Loop", ["rounds", "", "matrix"], ["end"], body=body),
            helper.make_node("ReduceMin", ["end"], ["zero"], keepdims=0),
            helper.make_node("ReduceSum", ["x", "axes"], ["rows"], keepdims=0),
            helper.make_node("Add", ["rows", "zero"], ["sum"]),
        ],
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch"])],
        [matrix, numpy_helper.from_array(np.array([1], np.int64), "axes"),
         numpy_helper.from_array(np.array(base, np.float32), "base")],
    )  # fmt: skip
    return _save(_model(graph), folder)


def matmul_with_external_data(folder: Path) -> Path:
    """Write a model that keeps its weights in a file of their own."""
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = _model(helper.make_graph([node], "matmul", values[:1], values[1:], [weights]))
    onnx.save(proto, _place(folder), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return folder


def tokens(folder: Path) -> Path:
    """Write a model that looks up `ids` (int64 [batch, 3]) in a table of 7 rows."""
    table = numpy_helper.from_array(np.arange(7, dtype=np.float32), "table")
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["found"])], "tokens", [ids], [found], [table]
    )
    return _save(_model(graph), folder)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _place(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder / "model.onnx"


def _save(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, _place(folder))
    return folder


def colours(folder: Path) -> Path:
    """Write a model of pictures `x` (float32 [batch, 3, 8, 8]): the mean of each channel, ten times."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Mul", ["flat", "ten"], ["shares"]),
        ],
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(10, np.float32), "ten")],
    )
    return _save(_model(graph), folder)


def corner(folder: Path) -> Path:
    """Write a model of pictures `x` (float32 [batch, 3, 8, 8]): the channels of the pixel at the top left."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "first"], ["row"], axis=2),
            helper.make_node("Gather", ["row", "first"], ["shares"], axis=2),
        ],
        "corner",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.array(0, np.int64), "first")],
    )
    return _save(_model(graph), folder)


def waves(folder: Path) -> Path:
    """Write a model of sounds `x` (float32 [batch, 1, samples]), which need 400 samples at least: their mean."""
    kernel = numpy_helper.from_array(np.ones((1, 1, 400), np.float32) / 400, "kernel")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["frames"], strides=[160]),
            helper.make_node("GlobalAveragePool", ["frames"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["y"]),
        ],
        "waves",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, "samples"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [kernel],
    )
    return _save(_model(graph), folder)


def two_outputs(folder: Path) -> Path:
    """Write a model of `x` (float32 [batch, 2]) that answers `sum` and `double`."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "x"], ["double"]),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch"]),
         helper.make_tensor_value_info("double", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )  # fmt: skip
    return _save(_model(graph), folder)
