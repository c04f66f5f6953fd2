"""torch.quantize_dynamic, torch.quantize_static, onnx.float16 and onnx.sensitivity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import CASES, line_of, stage
from tests.bundles import bundle as bundle_of
from tests.conftest import CALIBRATION


def static(tmp_path: Path, model: Path, samples: Path = CALIBRATION, **params: Any) -> StageRun:
    inputs = {"model": model, "calibration": samples}
    return run_stage(stage("torch.quantize_static"), tmp_path / "qs", inputs=inputs, params=params)


def own_samples(tmp_path: Path, model: Path) -> Path:
    """Save the inputs of a bundle's first case as calibration samples."""
    with np.load(model / "reference.npz") as arrays:
        case = arrays.files[0].partition("/")[0]
        inputs = {n.rpartition("/")[2]: arrays[n] for n in arrays.files if n.startswith(f"{case}/in/")}
    np.savez(tmp_path / "own.npz", **inputs)
    return tmp_path / "own.npz"


def test_static_fuses_calibrates_and_keeps_the_predictions(tmp_path: Path, bundle: Path) -> None:
    made = static(tmp_path, bundle, samples=CALIBRATION)
    assert made.figures["fused"] == 3
    assert made.figures["calibration_samples"] == 200
    assert made.figures["argmax_agreement"] > 0.97
    assert made.figures["smaller"] > 2.5
    assert b"debug_pkl" not in made["model"].read_bytes()


@pytest.mark.parametrize(
    ("params", "fused"),
    [({"fuse": []}, 0), ({"fuse": [["features.0", "features.1", "features.2"]]}, 1), ({"engine": "qnnpack"}, 3)],
    ids=str,
)  # fmt: skip
def test_static_fuses_what_is_named_and_runs_on_the_named_engine(
    tmp_path: Path, bundle: Path, params: dict[str, Any], fused: int
) -> None:
    made = static(tmp_path, bundle, **params)
    assert made.figures["fused"] == fused
    assert made.figures["argmax_agreement"] > 0.95


def test_an_excluded_layer_stays_in_float(tmp_path: Path, bundle: Path) -> None:
    made = static(tmp_path, bundle, exclude=["head.4"])
    assert made.figures["float_layers"] == ["head.4"]
    with pytest.raises(StageError, match="the model has no module 'heat.4'") as error:
        static(tmp_path, bundle, exclude=["heat.4"])
    assert "did you mean 'head.4'" in error.value.fix


@pytest.mark.parametrize(
    ("name", "kept"), [("text", ["embed", "encoder"]), ("memory", ["lstm"]), ("tied", ["embed"])]
)
def test_layers_without_a_static_form_stay_in_float(tmp_path: Path, name: str, kept: list[str]) -> None:
    model = bundle_of(tmp_path, name, **CASES[name])["model"]
    made = static(tmp_path, model, own_samples(tmp_path, model))
    assert made.figures["float_layers"] == kept
    assert made.figures["cosine"] > 0.97


def test_an_operator_without_an_int8_form_is_named_with_its_line(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "two", **CASES["two"])["model"]
    with pytest.raises(
        StageError, match=f"the operator aten::add.out has no int8 form in torch at {line_of('left + right')}"
    ) as error:
        static(tmp_path, model, own_samples(tmp_path, model))
    assert "onnx.quantize_static" in error.value.fix


@pytest.mark.parametrize("name", CASES)
def test_dynamic_keeps_every_model_close(tmp_path: Path, name: str) -> None:
    model = bundle_of(tmp_path, name, **CASES[name])["model"]
    made = run_stage(stage("torch.quantize_dynamic"), tmp_path / "qd", inputs={"model": model})
    assert made.figures["cosine"] > 0.999
    assert made.figures["layers"] >= 1


def test_dynamic_without_a_layer_to_quantize_is_refused(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(StageError, match="the model has no layer of LSTM"):
        run_stage(
            stage("torch.quantize_dynamic"), tmp_path, inputs={"model": bundle}, params={"layers": ["LSTM"]}
        )


@pytest.mark.parametrize("keep_io", [True, False])
def test_float16_is_half_the_size_and_close(tmp_path: Path, fp32: Path, bundle: Path, keep_io: bool) -> None:
    inputs = {"model": fp32, "reference": bundle}
    made = run_stage(stage("onnx.float16"), tmp_path, inputs=inputs, params={"keep_io": keep_io})
    kind = onnx.load(made["model"] / "model.onnx").graph.input[0].type.tensor_type.elem_type
    assert kind == (onnx.TensorProto.FLOAT if keep_io else onnx.TensorProto.FLOAT16)
    assert made.figures["smaller"] > 1.9
    with pytest.raises(GateError, match="differs from the original"):
        run_stage(stage("onnx.float16"), tmp_path, inputs=inputs, params={"atol": 0.0, "rtol": 0.0})


def test_sensitivity_orders_the_layers_and_names_what_to_exclude(tmp_path: Path, fp32: Path) -> None:
    inputs = {"model": fp32, "calibration": CALIBRATION}
    params = {"samples": 20, "min_sqnr_db": 45.0}
    made = [
        run_stage(stage("onnx.sensitivity"), tmp_path / str(i), inputs=inputs, params=params)
        for i in range(2)
    ]
    report = json.loads(made[0]["report"].read_text())
    ratios = [layer["sqnr_db"] for layer in report["layers"]]
    assert ratios == sorted(ratios)
    assert {layer["operator"] for layer in report["layers"]} == {"Conv", "Gemm"}
    assert report["exclude"] == [layer["layer"] for layer in report["layers"] if layer["sqnr_db"] < 45.0]
    assert report["layers"][0]["layer"] in made[0]["plot"].read_text()
    assert made[0]["plot"].read_bytes() == made[1]["plot"].read_bytes()
    excluded = run_stage(
        stage("onnx.quantize_static"), tmp_path / "q", inputs=inputs, params={"exclude": report["exclude"]}
    )
    everything = run_stage(stage("onnx.quantize_static"), tmp_path / "a", inputs=inputs)
    assert excluded.figures["left_float"] == sorted(report["exclude"])
    assert excluded.figures["cosine"] > everything.figures["cosine"]
