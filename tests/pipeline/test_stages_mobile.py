"""mobile.lite and mobile.executorch: converted, loaded by their runtimes, run at every size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import CASES, line_of, stage
from tests.bundles import bundle as bundle_of
from tests.conftest import CALIBRATION, DIGITS, ROOT


def lite(tmp_path: Path, model: Path, **inputs: Path) -> StageRun:
    return run_stage(stage("mobile.lite"), tmp_path / "lite", inputs={"model": model, **inputs})


def executorch(tmp_path: Path, model: Path, calibration: Path | None = None, **params: Any) -> StageRun:
    inputs = {"model": model, "calibration": calibration}
    return run_stage(stage("mobile.executorch"), tmp_path / "et", inputs=inputs, params=params)


def test_lite_says_what_this_torch_could_optimise(tmp_path: Path, bundle: Path) -> None:
    import torch.backends.xnnpack

    made = lite(tmp_path, bundle)
    has_xnnpack = torch.backends.xnnpack.enabled  # type: ignore[attr-defined]
    expected = "optimize_for_mobile" if has_xnnpack else "only frozen: this build of torch has no XNNPACK"
    assert made.figures["optimized"] == expected
    assert made.figures["max_abs"] < 1e-4
    assert b"debug_pkl" not in made["model"].read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_lite_agrees_with_eager_on_every_model(tmp_path: Path, name: str) -> None:
    made = lite(tmp_path, bundle_of(tmp_path, name, **CASES[name])["model"])
    assert made.figures["max_abs"] < 1e-5


def test_lite_takes_a_scripted_program_where_a_trace_is_refused(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "branch", example={"shape": [2, 4]})["model"]
    with pytest.raises(StageError, match=f"control flow depends on its data at {line_of('if x.sum')}"):
        lite(tmp_path, model)
    program = run_stage(stage("torch.script"), tmp_path / "s", inputs={"model": model})["model"]
    assert lite(tmp_path, model, program=program).figures["max_abs"] == 0.0


@pytest.mark.slow
def test_the_snippets_hold_the_models_real_names_and_shapes(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "two", **CASES["two"])["model"]
    snippets = lite(tmp_path, model)["snippets"]
    assert sorted(p.name for p in snippets.iterdir()) == [
        "Predict.kt",
        "Predict.swift",
        "TorchModule.h",
        "TorchModule.mm",
    ]
    kotlin = (snippets / "Predict.kt").read_text()
    assert "fun predict(left: FloatArray, right: FloatArray): FloatArray" in kotlin
    assert "Tensor.fromBlob(left, longArrayOf(1, 4))" in kotlin
    assert 'toDictStringKey()["sum"]!!.toTensor()' in kotlin
    assert "//   left: float32 [batch, 4]" in kotlin
    assert 'toGenericDict().at("sum").toTensor()' in (snippets / "TorchModule.mm").read_text()
    exported = executorch(tmp_path, model)["snippets"]
    assert "Tensor<Float>(left, shape: [1, 4])" in (exported / "Predict.swift").read_text()
    assert "EValue.from(leftTensor), EValue.from(rightTensor)" in (exported / "Predict.kt").read_text()


@pytest.mark.parametrize(
    "name", ["two", *(pytest.param(n, marks=pytest.mark.slow) for n in ("text", "tied"))]
)
def test_executorch_agrees_with_eager_up_to_the_largest_sizes(tmp_path: Path, name: str) -> None:
    made = executorch(tmp_path, bundle_of(tmp_path, name, **CASES[name])["model"], largest={"batch": 20})
    assert made.figures["max_abs"] < 1e-5
    assert made.figures["largest"]["batch"] == 23


def test_an_axis_as_long_as_another_one_stays_dynamic(tmp_path: Path) -> None:
    """A batch of 16 in a model with 4 x 4 pixels: lowered as it is, the program takes 16 alone."""
    taken = run_stage(
        stage("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": DIGITS / "digits.pt"}
    )
    params = {"factory": "examples/digits/model.py:build", "example": {"shape": [1, 1, 8, 8]}}
    prepared = run_stage(
        stage("model.prepare"),
        tmp_path / "b",
        inputs={"weights": taken["weights"]},
        params=params,
        project=ROOT,
    )
    assert executorch(tmp_path, prepared["model"], largest={"batch": 16}).figures["largest"] == {"batch": 17}


@pytest.mark.slow
def test_executorch_delegates_and_quantizes(tmp_path: Path, bundle: Path) -> None:
    made = executorch(tmp_path / "float", bundle)
    quantized = executorch(tmp_path / "int8", bundle, CALIBRATION, quantize="int8")
    assert made.figures["delegated"] == "10 of 12 operators"
    assert made.figures["max_abs"] < 1e-4
    assert quantized.figures["argmax_agreement"] > 0.97
    assert quantized.figures["bytes"] * 3 < made.figures["bytes"]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"largest": {"height": 9}}, "the model has no dynamic axis 'height', only batch"),
        ({"largest": {"batch": 3}}, "batch is 3, but a reference case has 64"),
        ({"quantize": "int8"}, "there is no calibration data"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    tmp_path: Path, bundle: Path, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        executorch(tmp_path, bundle, **params)


def test_executorch_names_an_axis_that_the_model_fixes(tmp_path: Path) -> None:
    model = bundle_of(tmp_path, "memory", **CASES["memory"])["model"]
    with pytest.raises(StageError, match="the model fixes the dynamic axis 'length'"):
        executorch(tmp_path, model)
