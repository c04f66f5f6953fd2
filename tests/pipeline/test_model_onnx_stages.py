"""model.onnx: what the other stages make of a stranger's file."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import ROOT, Project
from tests.pipeline.strangers import (
    FLOAT,
    FLOAT16,
    INT64,
    Dims,
    described,
    dims_of,
    node,
    perceptron,
    samples,
    save,
    take,
    weight,
    whole,
)


def quantizable(folder: Path) -> StageRun:
    return take(folder, perceptron(folder, (None, 8)))


@pytest.mark.parametrize(
    ("uses", "reference"),
    [("onnx.check", False), ("onnx.optimize", True), ("onnx.float16", True), ("onnx.quantize_dynamic", True)],
)
@pytest.mark.parametrize("given", ["model", "onnx"])
def test_every_onnx_stage_takes_the_bundle_and_the_file(
    tmp_path: Path, uses: str, reference: bool, given: str
) -> None:
    made = quantizable(tmp_path)
    inputs = {"model": made[given]} | ({"reference": made["model"]} if reference else {})
    done = run_stage(stage(uses), tmp_path / "next", inputs=inputs)
    assert done.figures["bytes"] > 0


@pytest.mark.parametrize(("dims", "runs"), [((None, 8), 64), ((4, 8), 16)], ids=["any batch", "batches of 4"])
def test_calibration_is_on_its_inputs_and_judged_on_its_cases(tmp_path: Path, dims: Dims, runs: int) -> None:
    made = take(tmp_path, perceptron(tmp_path, dims))
    np.savez(tmp_path / "c.npz", x=samples(64))
    inputs = {"model": made["model"], "reference": made["model"], "calibration": tmp_path / "c.npz"}
    done = run_stage(stage("onnx.quantize_static"), tmp_path / "q", inputs=inputs)
    assert done.figures["cosine"] > 0.98
    assert done.figures["calibration_samples"] == runs


def test_a_bundle_is_calibration_data_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=samples(40))
    made = take(tmp_path, perceptron(tmp_path, (None, 8)), real=tmp_path / "s.npz")
    inputs = {"model": made["model"], "calibration": made["model"]}
    done = run_stage(stage("onnx.quantize_static"), tmp_path / "q", inputs=inputs)
    assert done.figures["cosine"] > 0.98
    assert done.figures["calibration_samples"] == 41


@pytest.mark.parametrize(
    "uses", ["torch.trace", "torch.script", "torch.export", "torch.save_full", "torch.quantize_dynamic",
             "onnx.export", "mobile.lite", "mobile.executorch"]
)  # fmt: skip
def test_stages_that_need_a_module_say_what_to_do(tmp_path: Path, uses: str) -> None:
    made = quantizable(tmp_path)
    with pytest.raises(StageError, match=r"the model is an \.onnx file: it has no PyTorch module") as error:
        run_stage(stage(uses), tmp_path / "next", inputs={"model": made["model"]})
    assert error.value.fix == "use the onnx.* stages, or model.prepare with the model's weights and factory"


def test_a_stranger_s_file_goes_all_the_way(tmp_path: Path) -> None:
    project = Project(tmp_path / "p")
    perceptron(project.folder, (None, 8), opset=9, ir=3)
    x = samples(32)
    np.savez(project.folder / "data.npz", x=x, y=np.arange(32) % 4)
    project.pipeline(
        """
        model: {uses: model.onnx, inputs: {model: mlp.onnx}}
        static:
          uses: onnx.quantize_static
          inputs:
            model: "${{ stages.model.outputs.onnx }}"
            calibration: "${{ stages.model.outputs.model }}"
            reference: "${{ stages.model.outputs.model }}"
          with: {min_cosine: 0.9}
        int8:
          uses: onnx.quantize_dynamic
          inputs: {model: "${{ stages.model.outputs.onnx }}", reference: "${{ stages.model.outputs.model }}"}
        parity:
          uses: verify.parity
          inputs: {candidate: "${{ stages.model.outputs.onnx }}", reference: "${{ stages.model.outputs.model }}"}
        accuracy:
          uses: verify.accuracy
          inputs: {candidate: "${{ stages.int8.outputs.model }}", data: data.npz, reference: "${{ stages.model.outputs.model }}"}
        own:
          uses: verify.accuracy
          inputs: {candidate: "${{ stages.model.outputs.model }}", data: data.npz, reference: "${{ stages.model.outputs.model }}"}
        latency:
          uses: verify.latency
          inputs: {candidate: "${{ stages.int8.outputs.model }}", reference: "${{ stages.model.outputs.model }}"}
          with: {rounds: 5}
        best:
          uses: select
          inputs:
            candidates: {int8: "${{ stages.int8.outputs.model }}", float: "${{ stages.model.outputs.model }}"}
            accuracy: {int8: "${{ stages.accuracy.outputs.report }}", float: "${{ stages.own.outputs.report }}"}
            reference: "${{ stages.model.outputs.model }}"
          with: {rounds: 5, max_drop: 50}
        package:
          uses: package.sagemaker
          inputs: {model: "${{ stages.best.outputs.model }}", reference: "${{ stages.model.outputs.model }}"}
        container:
          uses: package.container
          inputs: {model: "${{ stages.model.outputs.model }}", reference: "${{ stages.model.outputs.model }}"}
        """
    )
    assert set(project.states().values()) == {"ran"}
    assert set(project.states().values()) == {"hit"}


@pytest.mark.slow
def test_the_pipeline_of_the_docs_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs/writing-a-pipeline.md").read_text()
    found = re.search(r"^```yaml\n(version: 1\nname: stranger\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    project = Project(tmp_path / "p")
    shutil.copytree(ROOT / "examples/detector", project.folder / "examples/detector")
    project.write("pipeline.yaml", found.group(1))
    assert set(project.states().values()) == {"ran"}
    project.cli("get", "model.onnx", "-o", "kept")
    written = onnx.load(project.folder / "kept/model.onnx")
    assert dims_of(written.graph.input) == {"image": [1, 3, "height", "width"]}


def half(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(
        np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(np.float16), name
    )


@pytest.mark.parametrize(
    ("nodes", "inputs", "output", "weights"),
    [
        pytest.param([node("Relu", "x", "y")], {"x": (FLOAT, (0, 8))}, (FLOAT, (0, 8)), [], id="size 0 for any"),
        pytest.param([node("Relu", "x", "y")], {"x": (FLOAT, (-1, 8))}, (FLOAT, (-1, 8)), [], id="size -1 for any"),
        pytest.param([node("Relu", "a/b:0", "y")], {"a/b:0": (FLOAT, ("batch/size", 8))}, (FLOAT, ("batch/size", 8)), [],
                     id="slashes in names"),
        pytest.param([node("MatMul", "x w", "y")], {"x": (FLOAT16, ("n", 8))}, (FLOAT16, ("n", 4)), [half("w", 8, 4)],
                     id="half precision"),
        pytest.param([node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "d"),
                      node("MatMul", "d w", "y")], {"x": (FLOAT, ("batch", 8))}, (FLOAT, ("batch", 4)), [weight("w", 8, 4)],
                     id="int8 by the values of a batch"),
        pytest.param([node("Add", "sr one", "k"), node("Cast", "k", "f", to=FLOAT), node("Add", "x f", "y")],
                     {"x": (FLOAT, ("batch", 8)), "sr": (INT64, ())}, (FLOAT, ("batch", 8)), [whole("one", 1)],
                     id="a sampling rate"),
    ],
)  # fmt: skip
def test_odd_files_are_models_too(tmp_path: Path, nodes: Any, inputs: Any, output: Any, weights: Any) -> None:
    made = take(tmp_path, save(tmp_path / "m.onnx", nodes, inputs, {"y": output}, weights))
    assert len(made.figures["cases"]) == 3
    done = run_stage(
        stage("verify.parity"), tmp_path / "p", inputs={"candidate": made["onnx"], "reference": made["model"]}
    )
    assert done.figures["max_abs"] == 0


def test_a_model_that_uses_random_numbers_fails_the_checklist(tmp_path: Path) -> None:
    nodes = [node("RandomNormalLike", "x", "r"), node("Add", "x r", "y")]
    file = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ("N", 8))}, {"y": (FLOAT, ("N", 8))})
    with pytest.raises(GateError, match="two runs differ: the model uses random numbers"):
        take(tmp_path, file)


@pytest.mark.parametrize(("change", "refused"), [(1e-3, True), (1e-7, False)])
def test_another_file_is_held_to_the_rounding_of_the_first(
    tmp_path: Path, change: float, refused: bool
) -> None:
    made = quantizable(tmp_path)
    model = onnx.load(made["onnx"] / "model.onnx")
    values = numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1 + change)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
    onnx.save(model, tmp_path / "other.onnx")
    inputs = {"candidate": tmp_path / "other.onnx", "reference": made["model"]}
    with pytest.raises(GateError, match="the outputs differ by up to") if refused else nullcontext():
        run_stage(stage("verify.parity"), tmp_path / "p", inputs=inputs)


@pytest.mark.parametrize(("kind", "eps"), [(FLOAT, 2**-23), (FLOAT16, 2**-10)], ids=["single", "half"])
def test_the_tolerance_is_64_units_of_the_coarsest_type_of_the_file(
    tmp_path: Path, kind: int, eps: float
) -> None:
    weights = [half("w", 8, 4) if kind == FLOAT16 else weight("w", 8, 4)]
    nodes = [node("Cast", "x", "a", to=kind), node("MatMul", "a w", "b"), node("Cast", "b", "y", to=FLOAT)]
    made = take(
        tmp_path,
        save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ("n", 8))}, {"y": (FLOAT, ("n", 4))}, weights),
    )
    for case in described(made)["precision"].values():
        assert case["y"]["allowed"] == pytest.approx(64 * eps * case["y"]["scale"])


def test_weights_are_no_inputs_of_a_package(tmp_path: Path) -> None:
    file = perceptron(tmp_path, ("batch", 8), opset=9, ir=3)
    package = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs={"model": file})["package"]
    with tarfile.open(package) as archive:
        member = archive.extractfile("model.json")
        assert member
        assert [port["name"] for port in json.load(member)["inputs"]] == ["x"]


def test_a_bundle_is_as_large_as_its_model(tmp_path: Path) -> None:
    made = quantizable(tmp_path)
    done = run_stage(stage("verify.size"), tmp_path / "s", inputs={"candidate": made["model"]})
    assert done.figures["bytes"] == (made["onnx"] / "model.onnx").stat().st_size
