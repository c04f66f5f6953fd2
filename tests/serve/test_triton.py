"""package.triton: the repository, and Triton's own answers from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy_runner.sdk import GateError, StageError
from deploy_runner.stages.model import protos
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import HELD
from tests.serve import models, triton


def packed(
    folder: Path, model: Path, reference: Path | None = None, io: Path | None = None, **params: Any
) -> StageRun:
    inputs = {"model": model, "reference": reference, "io": io}
    given = {name: path for name, path in inputs.items() if path is not None}
    return run_stage(stage("package.triton"), folder, inputs=given, params=params)


def adder(
    path: Path, shape: list[Any], kind: int = TensorProto.FLOAT, answer: list[Any] | None = None
) -> Path:
    values = [
        helper.make_tensor_value_info("left", kind, shape),
        helper.make_tensor_value_info("right", kind, shape),
        helper.make_tensor_value_info("sum", kind, shape if answer is None else answer),
    ]
    nodes = [helper.make_node("Add", ["left", "right"], ["sum"])]
    graph = helper.make_graph(nodes, "add", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_the_configuration_says_what_the_file_says(tmp_path: Path, digits: models.Digits) -> None:
    made = packed(tmp_path / "p", digits.int8, digits.bundle, name="digits", queue_us=100)
    assert (made["repository"] / "digits/config.pbtxt").read_text() == (
        'name: "digits"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 32\n"
        'input [ { name: "image"  data_type: TYPE_FP32  dims: [ 1, 8, 8 ] } ]\n'
        'output [ { name: "output"  data_type: TYPE_FP32  dims: [ 10 ] } ]\n'
        "dynamic_batching { max_queue_delay_microseconds: 100 }\n"
    )
    assert made.figures["max_abs"] == 0
    fixed = packed(tmp_path / "f", adder(tmp_path / "a.onnx", [2, "length"], TensorProto.INT64))
    assert (fixed["repository"] / "model/config.pbtxt").read_text() == (
        'name: "model"\n'
        'backend: "onnxruntime"\n'
        "max_batch_size: 0\n"
        'input [ { name: "left"  data_type: TYPE_INT64  dims: [ 2, -1 ] } ]\n'
        'input [ { name: "right"  data_type: TYPE_INT64  dims: [ 2, -1 ] } ]\n'
        'output [ { name: "sum"  data_type: TYPE_INT64  dims: [ 2, -1 ] } ]\n'
    )
    repository = made["repository"]
    assert (repository / "digits/1/model.onnx").read_bytes() == (digits.int8 / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("shape", "kind", "params", "said"),
    [
        ([2, 3], TensorProto.FLOAT, {"max_batch": 8}, "max_batch is 8, but 'left' has the shape \\[2, 3\\]"),
        (["batch"], TensorProto.FLOAT, {"max_batch": 8}, "has the shape \\[-1\\]"),
        ([2, 3], TensorProto.FLOAT, {"queue_us": 1}, "queue_us needs a model that Triton may batch"),
        ([], TensorProto.FLOAT, {}, "'left' has the shape \\[\\], which Triton can't describe"),
        (None, TensorProto.FLOAT, {}, "doesn't say how many dimensions 'left' has"),
    ],
)
def test_what_triton_could_not_serve_is_refused(
    tmp_path: Path, shape: Any, kind: int, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        packed(tmp_path / "p", adder(tmp_path / "a.onnx", shape, kind), **params)


def test_a_file_that_answers_other_shapes_than_it_says_is_refused(tmp_path: Path) -> None:
    honest = adder(tmp_path / "honest.onnx", ["batch", "length"])
    reference = run_stage(stage("model.onnx"), tmp_path / "r", inputs={"model": honest})["model"]
    liar = adder(tmp_path / "liar.onnx", ["batch", "length"], answer=["batch", 7])
    with pytest.raises(GateError, match=r"'sum' is float32 .* but the ONNX file says float32 \[-1, 7\]"):
        packed(tmp_path / "p", liar, reference)


def test_a_sequence_of_maps_is_refused(tmp_path: Path) -> None:
    """sklearn's classifiers answer one, as skl2onnx converts them by default."""
    path = adder(tmp_path / "a.onnx", ["batch", 2])
    model = onnx.load(path)
    model.graph.output.append(helper.make_value_info("scores", helper.make_sequence_type_proto(helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])))))  # fmt: skip
    onnx.save(model, path)
    with pytest.raises(StageError, match="'scores' is a sequence, and Triton takes tensors only"):
        packed(tmp_path / "p", path)


def test_only_onnx_is_taken(tmp_path: Path, digits: models.Digits) -> None:
    with pytest.raises(StageError, match="model.pt is no ONNX model"):
        packed(tmp_path / "p", digits.torchscript, digits.bundle)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return triton.install(tmp_path_factory.mktemp("triton") / "wheels")


def echo(path: Path) -> Path:
    """Write a model that answers the texts that it is given."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.STRING, ["batch", 2]) for name in ("said", "same")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["said"], ["same"])], "echo", values[:1], values[1:]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.slow
def test_triton_answers_as_the_original(tmp_path: Path, digits: models.Digits, wheels: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {n}\n" for n in range(10)))
    io = run_stage(
        stage("model.io"), tmp_path / "io", inputs={"model": digits.bundle, "labels": labels},
        params={"picture": {}},
    )["io"]  # fmt: skip
    for made in (
        packed(tmp_path / "1", digits.onnx, digits.bundle, io, name="digits", queue_us=1000),
        packed(tmp_path / "2", digits.int8, digits.bundle, name="int8", max_batch=0),
        packed(tmp_path / "3", models.tokens(tmp_path / "tokens"), name="tokens"),
        packed(tmp_path / "4", models.matmul_with_external_data(tmp_path / "m"), name="external"),
        packed(tmp_path / "5", adder(tmp_path / "a.onnx", [2, "length"]), name="fixed"),
        packed(tmp_path / "6", echo(tmp_path / "e.onnx"), name="echo"),
    ):
        shutil.copytree(made["repository"], tmp_path / "repository", dirs_exist_ok=True)
    (tmp_path / "repository/manifest.json").write_text("{}")  # As push.s3 puts it beside them.
    with np.load(HELD) as held:
        images = held["x"][:20].astype(np.float32)
    expected = {name: protos.runner(path, threads=1)({"image": images})["output"]
                for name, path in (("digits", digits.onnx), ("int8", digits.int8))}  # fmt: skip
    with triton.serving(tmp_path / "repository", wheels, tmp_path) as server:
        for name, answers in expected.items():
            found = server.infer(name, {"image": images})["output"]
            np.testing.assert_allclose(found, answers, rtol=1e-5, atol=1e-5)
        best = server.infer("digits", {"image": images}, classes=1)["output"]
        assert [b.decode().split(":")[2] for b in best[:, 0]] == [
            f"digit {n}" for n in expected["digits"].argmax(1)
        ]
        assert server.config("digits")["dynamic_batching"]["max_queue_delay_microseconds"] == "1000"
        assert server.infer("tokens", {"ids": np.array([[1, 5, 6]])})["found"].tolist() == [[1, 5, 6]]
        assert server.infer("external", {"x": np.ones((2, 4), "f4")})["y"].tolist() == [[4] * 4] * 2
        rows = np.ones((2, 5), "f4")
        assert server.infer("fixed", {"left": rows, "right": rows})["sum"].tolist() == [[2] * 5] * 2
        texts = np.array([["a", "ü"]], dtype=object)
        assert [b.decode() for b in server.infer("echo", {"said": texts})["same"][0]] == ["a", "ü"]
        assert "unexpected shape" in server.refusal("digits", {"image": images[:, :, :7]})
        assert "batch-size must be <= 32" in server.refusal("digits", {"image": np.repeat(images, 2, 0)})
        assert "data-type" in server.refusal("digits", {"image": images.astype("f8")})
