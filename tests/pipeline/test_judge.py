"""Lossy models are judged on inputs that nobody calibrated on, and refused with the cause and the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).standard_normal(shape).astype("f4")


def save(path: Path, nodes: list[Any], tensors: dict[str, Any], last: int, opset: int = 17) -> Path:
    """Write an ONNX model that takes `x` float [batch, 16] and gives `y` [batch, last]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", last])],
        [numpy_helper.from_array(np.asarray(array, "f4"), name) for name, array in tensors.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8),
        path / "m.onnx",
    )
    return path / "m.onnx"


def linear(path: Path, opset: int = 17) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return save(path, nodes, {"w": normal(16, 4)}, 4, opset)


def transposed(path: Path) -> Path:
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    return save(path, nodes, {"w": normal(4, 16)}, 4)


def masked(value: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        mask = np.where(np.arange(4) < 2, 0, value)
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["s"]),
            helper.make_node("Add", ["s", "mask"], ["a"]),
            helper.make_node("Softmax", ["a"], ["p"]),
            helper.make_node("MatMul", ["p", "v"], ["y"]),
        ]
        weights = {"w": normal(16, 4), "mask": mask, "v": normal(4, 3)}
        return save(path, nodes, weights, 3)

    return make


def dynamic(path: Path, model: Path, **params: Any) -> StageRun:
    return run_stage(stage("onnx.quantize_dynamic"), path / "q", inputs={"model": model}, params=params)


def static(path: Path, model: Path, samples: Any, **params: Any) -> StageRun:
    np.savez(path / "c.npz", x=np.asarray(samples, "f4"))
    inputs = {"model": model, "calibration": path / "c.npz"}
    return run_stage(stage("onnx.quantize_static"), path / "q", inputs=inputs, params=params)


@pytest.mark.parametrize(
    ("samples", "cause", "fix"),
    [
        pytest.param(
            np.zeros((40, 16)), "on the calibration samples every value of .* is 0", "real samples", id="dead"
        ),
        pytest.param(
            np.tile(normal(1, 16) * 0.01, (40, 1)), "exceed the range that was found", "varied", id="alike"
        ),
    ],
)
def test_samples_that_show_nothing_are_the_cause(tmp_path: Path, samples: Any, cause: str, fix: str) -> None:
    with pytest.raises(GateError, match=cause) as error:
        static(tmp_path, linear(tmp_path), samples)
    assert fix in error.value.fix


@pytest.mark.parametrize("value", [-np.inf, np.finfo("f4").min, -1e9, -1e4], ids=str)
@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_mask_stays_in_float_and_is_named(tmp_path: Path, value: float, method: str) -> None:
    made = static(tmp_path, masked(value)(tmp_path), normal(64, 16), method=method, min_cosine=0.97)
    assert len(made.figures["unfit_for_int8"]) == 2
    assert made.figures["quantized"] == 1  # The first MatMul has the mask for a bias: it is a Gemm now.


@pytest.mark.parametrize("make", [linear, transposed])
def test_a_file_without_reference_is_judged_by_what_its_graph_declares(tmp_path: Path, make: Any) -> None:
    made = dynamic(tmp_path, make(tmp_path))
    assert made.figures["samples"] == 3
    assert made.figures["quantized"] == 1
    assert made.figures["left_float"] == []
    assert made.figures["cosine"] > 0.9999


@pytest.mark.parametrize(
    ("quantize", "params", "needs"),
    [
        (dynamic, {}, False),
        (dynamic, {"weights": "int8"}, True),
        (dynamic, {"weights": "int8", "reduce_range": True}, False),
        (lambda p, m, **w: static(p, m, normal(40, 16), **w), {}, False),
        (lambda p, m, **w: static(p, m, normal(40, 16), **w), {"format": "QOperator"}, False),
        (lambda p, m, **w: static(p, m, normal(40, 16), **w), {"reduce_range": False}, True),
        (lambda p, m, **w: static(p, m, normal(40, 16), **w), {"weights": "uint8"}, False),
    ],
)
def test_what_overflows_without_vnni_is_said_on_every_cpu(
    tmp_path: Path, quantize: Any, params: dict[str, Any], needs: bool
) -> None:
    assert quantize(tmp_path, linear(tmp_path), **params).figures["needs_vnni"] is needs


def test_below_opset_13_the_scale_is_one_for_all_channels(tmp_path: Path) -> None:
    assert static(tmp_path, linear(tmp_path, opset=11), normal(40, 16)).figures["cosine"] > 0.999


@pytest.mark.parametrize(
    ("nodes", "params"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["y"], name="only")], {"exclude": ["only"]}),
        ([helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
         {"operators": ["Relu"]}),
    ],
)  # fmt: skip
def test_nothing_quantized_is_a_failure(tmp_path: Path, nodes: list[Any], params: dict[str, Any]) -> None:
    model = save(tmp_path, nodes, {"w": normal(16, 4)}, 4)
    with pytest.raises(StageError, match="nothing was quantized"):
        dynamic(tmp_path, model, **params)


def test_a_bias_of_several_layers_is_not_mixed_up_with_a_tensor_of_a_like_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Constant", [], ["axis"], value_ints=[1]),
             helper.make_node("Constant", [], ["flat"], value_ints=[-1, 56]),
             helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
             helper.make_node("Conv", ["u", "w", "b"], ["p"]), helper.make_node("Relu", ["p"], ["q"]),
             helper.make_node("Conv", ["q", "v", "b"], ["b0"]), helper.make_node("Neg", ["b0"], ["n"]),
             helper.make_node("Transpose", ["n"], ["t"], perm=[0, 2, 1]),
             helper.make_node("Reshape", ["t", "flat"], ["y"])]  # fmt: skip
    tensors = {"w": normal(4, 1, 2), "v": normal(4, 4, 2), "b": normal(4)}
    made = static(tmp_path, save(tmp_path, nodes, tensors, 56), normal(40, 16), min_cosine=0.9)
    assert made.figures["cosine"] > 0.99


def test_a_tensor_without_values_has_no_range(tmp_path: Path) -> None:
    """Files of opset 11 have one for each Resize that has no region of interest."""
    nodes = [helper.make_node("Unsqueeze", ["x"], ["u"], axes=[1]),
             helper.make_node("Resize", ["u", "roi", "scales"], ["r"]),
             helper.make_node("Squeeze", ["r"], ["s"], axes=[1]), helper.make_node("MatMul", ["s", "w"], ["y"])]  # fmt: skip
    tensors = {"roi": np.zeros(0), "scales": [1, 1, 2], "w": normal(32, 4)}
    made = static(tmp_path, save(tmp_path, nodes, tensors, 4, opset=11), normal(40, 16))
    assert made.figures["cosine"] > 0.99


def test_a_model_without_products_is_told_what_of_it_has_an_int8_form(tmp_path: Path) -> None:
    axis = helper.make_node("Constant", [], ["axis"], value_ints=[1])
    last = helper.make_node("Constant", [], ["last"], value_ints=[1])
    nodes = [axis, last, helper.make_node("Unsqueeze", ["x", "axis"], ["u"]),
             helper.make_node("Conv", ["u", "w"], ["c"]), helper.make_node("Squeeze", ["c", "last"], ["y"])]  # fmt: skip
    with pytest.raises(StageError, match="none of MatMul, Gemm, only .*Conv") as error:
        dynamic(tmp_path, save(tmp_path, nodes, {"w": normal(1, 1, 3)}, 14))
    assert error.value.fix == "use onnx.quantize_static, which suits convolutions"
    with pytest.raises(StageError, match="none of MatMul, Gemm, only Relu") as error:
        dynamic(tmp_path, save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {}, 16))
    assert error.value.fix == "keep it in float; onnx.float16 halves its size"


def test_a_lower_floor_is_the_users_choice(tmp_path: Path) -> None:
    made = static(
        tmp_path, linear(tmp_path), np.tile(normal(1, 16) * 0.01, (40, 1)), min_cosine=-1, min_agreement=0
    )
    assert made.figures["cosine"] < 0.98


@pytest.mark.parametrize(
    ("uses", "params"),
    [
        ("torch.quantize_static", {}),
        pytest.param("mobile.executorch", {"quantize": "int8"}, marks=pytest.mark.slow),
        ("onnx.quantize_static", {}),
    ],
)
def test_dead_calibration_is_refused_by_every_quantizer(
    tmp_path: Path, bundle: Path, fp32: Path, uses: str, params: dict[str, Any]
) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros((20, 1, 8, 8), "f4"))
    model = fp32 if uses.startswith("onnx") else bundle
    with pytest.raises(GateError, match="the result deviates too much from the original: .* cosine") as error:
        run_stage(stage(uses), tmp_path / "q", inputs={"model": model, "calibration": tmp_path / "c.npz"}, params=params)  # fmt: skip
    assert "calibrat" in error.value.fix


def test_reference_cases_of_another_kind_than_the_calibration_are_the_cause(
    tmp_path: Path, bundle: Path, fp32: Path
) -> None:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).random((40, 1, 8, 8), "f4"))
    inputs = {"model": fp32, "calibration": tmp_path / "c.npz", "reference": bundle}
    with pytest.raises(GateError, match="on the reference cases, .* exceed the range") as error:
        run_stage(stage("onnx.quantize_static"), tmp_path / "q", inputs=inputs)
    assert "such as the `samples` of model.prepare" in error.value.fix
