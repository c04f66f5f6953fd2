"""Write detector.onnx, as somebody else might have: opset 12, no name for any axis, no torch involved.

    python examples/detector/make.py

A picture [batch, 3, height, width] with sides in multiples of 32 becomes a score for each cell of 32 x 32.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CHANNELS = (3, 8, 12, 16, 16, 16)


def build() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "image"
    for layer, (few, many) in enumerate(pairwise(CHANNELS)):
        kernel = random.standard_normal((many, few, 3, 3)) * (2 / (9 * few)) ** 0.5
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"kernel{layer}"))
        nodes += [
            helper.make_node(
                "Conv", [value, f"kernel{layer}"], [f"conv{layer}"], pads=[1] * 4, strides=[2, 2]
            ),
            helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]),
        ]
        value = f"relu{layer}"
    head = random.standard_normal((1, CHANNELS[-1], 1, 1)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("Conv", [value, "head"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [None, 3, None, None])
    scores = helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [None, 1, None, None])
    graph = helper.make_graph(nodes, "detector", [image], [scores], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)


if __name__ == "__main__":
    Path(__file__).with_name("detector.onnx").write_bytes(build().SerializeToString(deterministic=True))
