"""Models to serve: the digits in three formats, one with two inputs, one that takes as long as it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy_runner.testing import run_stage
from tests.conftest import DIGITS
from tests.pipeline.test_stages_torch import stage

__all__ = ["Digits", "digits", "long_model", "other_weights", "scorer"]


@dataclass(frozen=True, slots=True)
class Digits:
    """The example's model: its bundle with reference samples, as ONNX, as TorchScript."""

    bundle: Path
    onnx: Path
    torchscript: Path


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
    return Digits(bundle, exported, traced)


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


def long_model(folder: Path, *, external: bool = False) -> Path:
    """Write a model that multiplies by a 256 × 256 matrix `rounds` times (int64): so long as it is told."""
    width = 256
    matrix = numpy_helper.from_array(np.eye(width, dtype=np.float32), "matrix")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "matrix"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [width, width]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [width, width]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["rounds", "", "matrix"], ["end"], body=body),
            helper.make_node("ReduceSum", ["end"], ["trace"], keepdims=0),
        ],
        "long",
        [helper.make_tensor_value_info("rounds", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("trace", TensorProto.FLOAT, [])],
        [matrix],
    )
    proto = _model(graph)
    if external:
        onnx.save(
            _model(graph),
            _place(folder),
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=0,
        )
        return folder
    return _save(proto, folder)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _place(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder / "model.onnx"


def _save(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, _place(folder))
    return folder
