"""External weights are put into an ONNX file without being read into memory: the model stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy_runner.stages.model import moving, protos

FLOAT = TensorProto.FLOAT


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array.astype(np.float32), name)


def branch(name: str, factor: float) -> onnx.GraphProto:
    """A branch of an If that holds a weight of its own."""
    node = helper.make_node("Mul", ["x", f"{name}_w"], [f"{name}_y"])
    weight = constant(f"{name}_w", np.full((4,), factor))
    return helper.make_graph(
        [node], name, [], [helper.make_tensor_value_info(f"{name}_y", FLOAT, None)], [weight]
    )


def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["shift"], value=constant("", np.arange(4))),
        helper.make_node("Add", ["given", "shift"], ["moved"]),
        helper.make_node("Concat", ["moved", "nothing"], ["x"], axis=1),
        helper.make_node(
            "If", ["which"], ["chosen"], then_branch=branch("up", 3), else_branch=branch("down", -2)
        ),
        helper.make_node("MatMul", ["chosen", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("given", FLOAT, ["n", 4]), helper.make_tensor_value_info("which", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 500])],
        [constant("w", np.random.default_rng(0).standard_normal((4, 500))), constant("nothing", np.zeros((2, 0)))],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("threshold", [0, 1024], ids=["all", "large ones"])
def test_external_weights_are_put_into_the_file_as_they_are(tmp_path: Path, threshold: int) -> None:
    whole, source = model(), tmp_path / "source"
    source.mkdir()
    onnx.save(model(), source / "model.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=threshold, convert_attribute=True)  # fmt: skip
    assert (source / "w.bin").stat().st_size >= 8000
    read = protos.load_proto(source, weights=False)
    moving.move_proto(read, source, tmp_path / "made")
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["model.onnx"]
    made = onnx.load(tmp_path / "made/model.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert [t.name for t in made.graph.initializer] == ["w", "nothing"]
    x = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    for which in (True, False):
        feeds = {"given": x, "which": np.array(which)}
        expected, actual = (
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (whole, made)
        )
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("laid_out", [True, False], ids=["aligned", "not aligned"])
def test_large_weights_that_lie_as_they_have_to_are_not_copied(
    tmp_path: Path, laid_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "SINGLE_FILE_BYTES", 1024)
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(model(), source / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    read = protos.load_proto(source, weights=False)
    if not laid_out:
        data = (source / "w.bin").read_bytes()
        (source / "w.bin").write_bytes(b"\0" * 100 + data)
        for tensor in protos.tensors_of(read):
            for entry in tensor.external_data:
                entry.value = str(int(entry.value) + 100) if entry.key == "offset" else entry.value
    number = (source / "w.bin").stat().st_ino
    moving.move_proto(read, source, tmp_path / "made")
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == ["model.onnx", "model.onnx.data"]
    assert ((tmp_path / "made/model.onnx.data").stat().st_ino == number) == laid_out
    made = onnx.load(tmp_path / "made/model.onnx")
    for before, after in zip(model().graph.initializer, made.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(after), numpy_helper.to_array(before))
