"""onnx.* on the digits example."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import bundle as bundle_of
from tests.bundles import line_of, stage
from tests.conftest import CALIBRATION


def quantize(folder: Path, model: Path, **params: Any) -> StageRun:
    inputs = {"model": model, "calibration": CALIBRATION}
    return run_stage(stage("onnx.quantize_static"), folder, inputs=inputs, params=params)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 22, 26])
def test_an_opset_is_delivered_or_refused_never_replaced(tmp_path: Path, bundle: Path, opset: int) -> None:
    made = run_stage(stage("onnx.export"), tmp_path, inputs={"model": bundle}, params={"opset": opset})
    model = onnx.load(made["model"] / "model.onnx")
    assert [o.version for o in model.opset_import if not o.domain] == [opset]
    assert made.figures["exporter"] == ("dynamo" if opset >= 18 else "torchscript")


def test_an_opset_that_an_exporter_would_silently_replace_is_refused(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(StageError, match="the dynamo exporter produced opset 18, not 11"):
        run_stage(
            stage("onnx.export"),
            tmp_path,
            inputs={"model": bundle},
            params={"opset": 11, "exporter": "dynamo"},
        )


@pytest.mark.slow
def test_an_operator_that_a_newer_opset_has_is_said_with_it(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "text")["model"]
    with pytest.raises(StageError, match="has no equivalent in this opset at models.py:") as error:
        run_stage(stage("onnx.export"), tmp_path / "o", inputs={"model": model}, params={"opset": 11})
    assert error.value.fix == "set `opset: 13` or newer"


def test_the_file_holds_names_dynamic_axes_and_no_paths(fp32: Path) -> None:
    model = onnx.load(fp32 / "model.onnx")
    assert [(i.name, i.type.tensor_type.shape.dim[0].dim_param) for i in model.graph.input] == [
        ("image", "batch")
    ]
    assert [o.name for o in model.graph.output] == ["output"]
    assert b"model.py" not in (fp32 / "model.onnx").read_bytes()
    assert sorted(p.name for p in fp32.iterdir()) == ["model.onnx"]


def test_an_operator_without_an_onnx_form_is_named_with_its_line(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "custom")["model"]
    place = line_of("torch.ops.shop.odd(self")
    with pytest.raises(StageError, match=rf"shop\.odd.* {place}"):
        run_stage(
            stage("onnx.export"), tmp_path / "o", inputs={"model": model}, params={"exporter": "dynamo"}
        )


def test_the_methods_differ_and_keep_the_predictions(tmp_path: Path, fp32: Path) -> None:
    made = {m: quantize(tmp_path / m, fp32, method=m) for m in ("minmax", "entropy", "percentile")}
    assert len({(run["model"] / "model.onnx").read_bytes() for run in made.values()}) == 3
    assert all(run.figures["agreement"] > 0.97 for run in made.values())
    assert all(run.figures["smaller"] > 3 for run in made.values())


def test_quantizing_twice_gives_the_same_bytes(tmp_path: Path, fp32: Path, int8: Path) -> None:
    again = quantize(tmp_path, fp32)["model"] / "model.onnx"
    assert again.read_bytes() == (int8 / "model.onnx").read_bytes()


@pytest.mark.parametrize("params", [{"format": "QOperator"}, {"per_channel": True}, {"samples": 20}], ids=str)
def test_the_other_ways_to_quantize_load_and_run(tmp_path: Path, fp32: Path, params: dict[str, Any]) -> None:
    assert quantize(tmp_path, fp32, **params).figures["argmax_agreement"] > 0.95


def test_per_channel_below_opset_13_is_refused_before_calibrating(tmp_path: Path, bundle: Path) -> None:
    old = run_stage(stage("onnx.export"), tmp_path / "o", inputs={"model": bundle}, params={"opset": 11})[
        "model"
    ]
    with pytest.raises(StageError, match="per_channel with QDQ needs opset 13, the model has 11"):
        quantize(tmp_path / "q", old, per_channel=True)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros(3)}, "has no array 'image', it has y"),
        ({"x": np.zeros((0, 1, 8, 8), np.float32)}, "the calibration data is empty"),
        ({"x": np.full((2, 1, 8, 8), np.nan, np.float32)}, "values that are not finite"),
        (
            {"x": np.zeros((2, 1, 9, 9), np.float32)},
            r"a sample of 'image' has the shape \(1, 9, 9\), the model takes \(1, 8, 8\)",
        ),
    ],
)
def test_bad_calibration_data_is_one_sentence(tmp_path: Path, fp32: Path, arrays: Any, said: str) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    inputs = {"model": fp32, "calibration": tmp_path / "c.npz"}
    with pytest.raises(StageError, match=said):
        run_stage(stage("onnx.quantize_static"), tmp_path / "q", inputs=inputs)


def test_calibration_data_with_python_objects_is_refused(tmp_path: Path, fp32: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StageError, match="not an .npz of plain arrays"):
        run_stage(
            stage("onnx.quantize_static"),
            tmp_path / "q",
            inputs={"model": fp32, "calibration": tmp_path / "c.npz"},
        )


def test_dynamic_quantization_takes_linear_layers_only(tmp_path: Path, fp32: Path, bundle: Path) -> None:
    made = run_stage(stage("onnx.quantize_dynamic"), tmp_path, inputs={"model": fp32, "reference": bundle})
    operators = {n.op_type for n in onnx.load(made["model"] / "model.onnx").graph.node}
    assert "Conv" in operators
    assert "ConvInteger" not in operators
    assert made.figures["argmax_agreement"] > 0.9
    with pytest.raises(StageError, match="the model has none of LSTM"):
        run_stage(
            stage("onnx.quantize_dynamic"),
            tmp_path / "n",
            inputs={"model": fp32},
            params={"operators": ["LSTM"]},
        )


def test_check_reports_what_is_in_the_file(tmp_path: Path, fp32: Path) -> None:
    report = json.loads(
        run_stage(stage("onnx.check"), tmp_path, inputs={"model": fp32})["report"].read_text()
    )
    assert report["opset"] == 20
    assert report["operators"]["Conv"] == 2


def external(
    folder: Path, *, location: str = "w.bin", offset: str = "0", length: str = "16", dims: Any = (4,)
) -> Path:
    """Write a model whose weight is external data with these claims."""
    folder.mkdir(parents=True, exist_ok=True)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [tensor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    return folder


def test_good_external_data_is_accepted(tmp_path: Path) -> None:
    made = run_stage(stage("onnx.check"), tmp_path / "run", inputs={"model": external(tmp_path / "m")})
    assert json.loads(made["report"].read_text())["external_tensors"] == 1


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"location": "/etc/passwd"}, "outside its folder"),
        ({"location": "../secret"}, "outside its folder"),
        ({"location": "a/../../secret"}, "outside its folder"),
        ({"location": "link"}, "behind the symbolic link"),
        ({"location": "hard"}, "behind the hard link"),
        ({"location": "none"}, "which does not exist"),
        ({"offset": "-1"}, "is not a whole number"),
        ({"offset": "99999999999"}, "needs 16 bytes from 99999999999"),
        ({"length": "4"}, "needs 16 bytes"),
        ({"dims": (2**40,)}, "needs 4398046511104 bytes"),
    ],
)  # fmt: skip
def test_external_data_that_leaves_its_file_is_refused(tmp_path: Path, claims: Any, said: str) -> None:
    folder = external(tmp_path / "m", **claims)
    (tmp_path / "secret").write_bytes(b"s" * 16)
    (folder / "link").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", folder / "hard")
    with pytest.raises(StageError, match=said):
        run_stage(stage("onnx.check"), tmp_path / "run", inputs={"model": folder})


def test_a_truncated_onnx_file_is_refused(tmp_path: Path, fp32: Path) -> None:
    (tmp_path / "m.onnx").write_bytes((fp32 / "model.onnx").read_bytes()[:-500])
    with pytest.raises(StageError, match="truncated or damaged"):
        run_stage(stage("onnx.check"), tmp_path / "run", inputs={"model": tmp_path / "m.onnx"})


def test_torch_is_the_pinned_version() -> None:
    assert torch.__version__.startswith("2.13.0")
