"""What a model's Python does with its data: found whatever the example makes of it, kept or refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import MODELS, bundle, line_of, stage
from tests.models.make import weights

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

EXAMPLE = {"example": {"shape": [1, 4]}}
RARE = f"the model's control flow depends on its data at {line_of('y.abs().max() > 40')}: a trace records one branch only"


def convert(tmp_path: Path, uses: str, model: Path, **params: Any) -> StageRun:
    return run_stage(stage(uses), tmp_path / uses, inputs={"model": model}, params=params)


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    return bundle(tmp_path, "quiet", **EXAMPLE)["model"]


@pytest.mark.parametrize("uses", ["torch.trace", "mobile.lite"])
def test_a_branch_that_no_example_takes_is_refused_with_its_own_line(
    tmp_path: Path, quiet: Path, uses: str
) -> None:
    with pytest.raises(StageError, match=re.escape(RARE)) as error:
        convert(tmp_path, uses, quiet)
    assert error.value.fix.startswith("use torch.script for this model")


def test_scripting_keeps_it_and_both_sides_are_run(tmp_path: Path, quiet: Path) -> None:
    made = convert(tmp_path, "torch.script", quiet)
    assert made.figures["branches"] == {line_of("y.abs().max() > 40"): "both"}
    inputs = {"model": quiet, "program": made["model"]}
    assert run_stage(stage("mobile.lite"), tmp_path / "lite", inputs=inputs).figures["max_abs"] == 0.0


@pytest.mark.parametrize(("uses", "library"), [("onnx.export", "onnx"), ("torch.quantize_dynamic", "torch")])
def test_what_traces_by_itself_scripts_such_a_model(
    tmp_path: Path, quiet: Path, uses: str, library: str
) -> None:
    model = convert(tmp_path, uses, quiet)["model"]
    large = np.full((2, 4), 300, np.float32)
    assert np.abs(_run(library, model, large)).max() == 1.0
    assert np.abs(_run(library, model, large / 1e4)).max() < 1.0


def _run(library: str, model: Path, array: Any) -> Any:
    if library == "onnx":
        return onnxruntime.InferenceSession(model / "model.onnx").run(None, {"x": array})[0]
    return torch.jit.load(model)(torch.from_numpy(array)).numpy()


def test_a_program_that_keeps_one_branch_is_refused_by_the_line(tmp_path: Path, quiet: Path) -> None:
    program = torch.nn.Linear(4, 3)
    program.load_state_dict({k: weights("quiet")[f"linear.{k}"] for k in ("weight", "bias")})
    torch.jit.save(torch.jit.trace(program.eval(), torch.ones(2, 4)), tmp_path / "traced.pt")
    inputs = {"model": quiet, "program": tmp_path / "traced.pt"}
    with pytest.raises(GateError, match=f"for data unlike the example's, on which {line_of('> 40')} depends"):
        run_stage(stage("mobile.lite"), tmp_path / "lite", inputs=inputs)


def test_a_number_taken_out_of_the_data_is_refused_and_named(tmp_path: Path) -> None:
    model = bundle(tmp_path, "number", **EXAMPLE)["model"]
    with pytest.raises(StageError, match=f"converts a tensor to a number at {line_of('int(kept.sum')}"):
        convert(tmp_path, "torch.trace", model)
    assert convert(tmp_path, "torch.script", model).figures["max_abs"] == 0.0


def test_sizes_and_buffers_are_not_data(tmp_path: Path) -> None:
    model = bundle(tmp_path, "flagged", **EXAMPLE)["model"]
    assert convert(tmp_path, "torch.trace", model).figures["max_abs"] == 0.0


def test_control_flow_on_sizes_is_refused_as_such(tmp_path: Path) -> None:
    model = bundle(tmp_path, "sized", **EXAMPLE)["model"]
    with pytest.raises(
        StageError, match=rf"depends on the sizes of its inputs \(batch\) at {line_of('x.shape[0] > 3')}"
    ):
        convert(tmp_path, "torch.trace", model)
    with pytest.raises(StageError, match="treats some sizes of a dynamic axis differently from others"):
        convert(tmp_path, "torch.export", model)
    assert convert(tmp_path, "onnx.export", model, exporter="torchscript").figures["max_abs"] < 1e-5
    assert convert(tmp_path, "torch.quantize_dynamic", model).figures["argmax_agreement"] > 0.5


@pytest.mark.parametrize(
    "uses", ["torch.trace", "torch.export", "onnx.export", "mobile.lite", "mobile.executorch"]
)
def test_a_model_that_writes_into_its_input_is_converted(tmp_path: Path, uses: str) -> None:
    model = bundle(tmp_path, "writing", **EXAMPLE)["model"]
    assert convert(tmp_path, uses, model).figures["max_abs"] < 1e-5


def test_outputs_that_are_no_float32_are_compared_as_they_are(tmp_path: Path) -> None:
    model = bundle(tmp_path, "values", output_names=["positive", "complex", "half"], **EXAMPLE)["model"]
    assert convert(tmp_path, "torch.trace", model).figures["max_abs"] == 0.0
    with np.load(model / "reference.npz") as arrays:
        kinds = {arrays[name].dtype.name for name in arrays.files if "/out/" in name}
    assert kinds == {"bool", "complex64", "float16"}


def test_a_factory_that_fails_is_one_sentence_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/models.py").write_text(MODELS)
    torch.save(weights("flagged"), tmp_path / "c.pt")
    source = run_stage(
        stage("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": tmp_path / "c.pt"}
    )
    for kwargs, said in (
        ({}, "FileNotFoundError: there is no licence.txt"),
        ({"width": 3}, "TypeError: failing"),
    ):
        with pytest.raises(StageError, match=f"models.py:failing fails: {said}") as error:
            run_stage(
                stage("model.prepare"), tmp_path / "b", inputs={"weights": source["weights"]},
                params={"factory": "models.py:failing", "kwargs": kwargs, **EXAMPLE}, project=tmp_path / "project",
            )  # fmt: skip
        assert kwargs or error.value.message.endswith(f" at {line_of('raise FileNotFoundError')}")
