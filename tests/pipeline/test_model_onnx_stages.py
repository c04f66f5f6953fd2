"""model.onnx: what the other stages make of a stranger's file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import ROOT, Project
from tests.pipeline.strangers import Dims, dims_of, perceptron, samples, take


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
