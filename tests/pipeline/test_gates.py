"""Beyond its tolerance it fails: said in the README, and true for every stage type there is.

Each type that makes, packs, deploys or judges a model is given one that differs from its reference, and
must refuse it. A type that isn't listed here fails the last test.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploy_runner.pipeline.schema import describe_stage_types
from deploy_runner.stages.package.entry_points import built_in
from tests.aws import TARGET
from tests.bundles import turn_one_sample
from tests.conftest import DIGITS, Project

RIGHT = """
weights: {uses: checkpoint.state_dict, inputs: {checkpoint: digits/digits.pt}}
model:
  uses: model.prepare
  inputs: {weights: "${{ stages.weights.outputs.weights }}", samples: digits/heldout.npz}
  with: {factory: "digits/model.py:build", example: {shape: [2, 1, 8, 8]}}
fp32: {uses: onnx.export, inputs: {model: "${{ stages.model.outputs.model }}"}}
package:
  uses: package.sagemaker
  inputs: {model: "${{ stages.fp32.outputs.model }}", reference: "${{ stages.model.outputs.model }}"}
accuracy:
  uses: verify.accuracy
  inputs:
    candidate: ${{ stages.fp32.outputs.model }}
    reference: ${{ stages.model.outputs.model }}
    data: digits/heldout.npz
"""

_MODEL = "inputs: {model: wrong}"
_CALIBRATED = "inputs: {model: wrong, calibration: digits/calibration.npz}"
_JUDGED = "inputs: {candidate: fp32, reference: wrong}"
_ONNX = "inputs: {model: fp32, reference: wrong}"
_RANDOM = "inputs: {model: random.onnx, reference: right}"
_CANDIDATES = "inputs: {candidates: {fp32: fp32}, accuracy: {fp32: accuracy.json}, reference: right}"

REFUSED = {
    "torch.trace": (_MODEL, "differs from the original"),
    "torch.script": (_MODEL, "differs from the original"),
    "torch.export": (_MODEL, "differs from the original"),
    "torch.save_full": (_MODEL, "differs from the original"),
    "torch.quantize_dynamic": (_MODEL, "cosine|agree"),
    "torch.quantize_static": (_CALIBRATED, "cosine|agree"),
    "onnx.export": (_MODEL, "differs from the original"),
    "onnx.optimize": (_RANDOM, "differs from the original"),
    "onnx.float16": (_ONNX, "differs from the original"),
    "onnx.quantize_dynamic": (_ONNX, "cosine|agree"),
    "onnx.quantize_static": ("inputs: {model: fp32, calibration: black.npz}", "cosine|agree"),
    "mobile.lite": (_MODEL, "differs from the original"),
    "mobile.executorch": (_MODEL, "differs from the original"),
    "verify.parity": (f"{_JUDGED}, with: {{atol: 0.001}}", "differ"),
    "verify.accuracy": (
        "inputs: {candidate: fp32, data: digits/heldout.npz}, with: {min_accuracy: 99.9}",
        "99.9",
    ),
    "verify.latency": (f"{_JUDGED}, with: {{max_ratio: 0.000001, rounds: 5}}", "ratio|time|slow"),
    "verify.size": (f"{_JUDGED}, with: {{max_bytes: 10}}", "bytes"),
    "select": (f"{_CANDIDATES}, with: {{rounds: 5}}", "no candidate meets the limits"),
    "package.sagemaker": (
        "inputs: {model: fp32, reference: right, code: wrong_inference.py}",
        "differs from the original",
    ),
    "package.container": (_RANDOM, "differs from the original"),
    "package.triton": (_RANDOM, "differs from the original"),
    "push.sagemaker": (
        "inputs: {package: model.tar.gz, smoke: wrong-smoke.npz}, with: {endpoint: e}",
        "smoke test",
    ),
    "model.prepare": (
        "inputs: {weights: weights.safetensors}, with: {factory: 'digits/model.py:build', "
        "example: {shape: [2, 1, 8, 8]}, expect_shape: [2, 11]}",
        "expected",
    ),
}
"""Type → the rest of its line, and what it says."""

NOTHING_TO_COMPARE = {
    "checkpoint.state_dict": "it copies tensors: tests/pipeline/test_checkpoints.py compares the bits",
    "checkpoint.create": "it copies tensors: tests/pipeline/test_stages_formats.py compares the bits",
    "coreml.convert": "Core ML runs on macOS alone: its record says that it is not proven, and how to: "
    "tests/pipeline/test_coreml.py",
    "checkpoint.inspect": "it makes no model, and looks at what is there",
    "checkpoint.resume_check": "its gate is the loss: tests/pipeline/test_stages_formats.py",
    "model.io": "it declares; with golden it is compared with the training code: tests/serve/test_io.py",
    "model.onnx": "the file is the reference of itself: tests/pipeline/test_model_onnx.py",
    "model.program": "the file is the reference of itself: tests/pipeline/test_model_program.py",
    "model.transformers": "what it makes is the reference: tests/pipeline/test_transformers.py",
    "onnx.embed_io": "its gate needs a model.io: tests/serve/test_embed_io.py",
    "onnx.check": "it makes no model, and looks at what is there",
    "onnx.sensitivity": "it makes no model: its gate is min_sqnr_db",
    "openvino.convert": "it does compare, where OpenVINO is: tests/pipeline/test_openvino.py",
    "openvino.quantize": "it does compare, where OpenVINO is: tests/pipeline/test_openvino.py",
    "package.sign": "it changes no byte of what it signs: tests/security/test_signing.py",
    "package.kserve": "what was pushed is compared by digest: tests/serve/test_kserve.py",
    "push.hub": "what is uploaded is compared by digest",
    "push.mlflow": "its gate runs MLflow's own loader: tests/pipeline/test_push_mlflow.py",
    "push.oci": "what is uploaded is compared by digest: tests/pipeline/test_push_oci.py",
    "push.s3": "what is uploaded is compared by digest",
    "push.transform": "its package was tried when it was packed",
    "verify.answers": "its gate needs a model.io: tests/serve/test_raw_data.py",
    "torch.aot": "it does compare, after compiling for long: tests/pipeline/test_aot.py",
    "run.command": "the user's own step",
    "run.python": "the user's own step",
}


def random_model(path: Path) -> None:
    """Write a model that never answers twice alike, as one that was exported while it trained.

    onnxruntime seeds by the node's place, which optimising away the first node alters.
    """
    shape: list[Any] = ["batch", 1, 8, 8]
    nodes = [
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("RandomNormalLike", ["same"], ["noise"], scale=100.0),
        helper.make_node("Add", ["same", "noise"], ["output"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "output")]
    graph = helper.make_graph(nodes, "random", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


WRONG_CODE = """
_right = predict_fn


def predict_fn(*given):
    return {name: -array for name, array in _right(*given).items()}
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run every type of `REFUSED` in one pipeline; return type → what the run says of it."""
    project = Project(tmp_path_factory.mktemp("gates") / "project")
    shutil.copytree(DIGITS, project.folder / "digits")
    project.pipeline(RIGHT)
    project.run()
    for output, place in (
        ("model.model", "right"), ("fp32.model", "fp32"), ("package.package", "model.tar.gz"),
        ("package.smoke", "smoke.npz"), ("accuracy.report", "accuracy.json"),
        ("weights.weights", "weights.safetensors"),
    ):  # fmt: skip
        project.cli("get", output, "--to", place)
    shutil.copytree(project.folder / "right", project.folder / "wrong")
    turn_one_sample(project.folder / "right/reference.npz", project.folder / "wrong/reference.npz")
    turn_one_sample(project.folder / "smoke.npz", project.folder / "wrong-smoke.npz")
    random_model(project.folder / "random.onnx")
    project.write("wrong_inference.py", built_in()["code/inference.py"].read_text() + WRONG_CODE)
    report = project.folder / "accuracy.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"accuracy": 10.0, "drop": 89.0}))
    np.savez(project.folder / "black.npz", image=np.zeros((20, 1, 8, 8), "f4"))
    lines = [f"{uses.replace('.', '-')}: {{uses: {uses}, {rest}}}" for uses, (rest, _) in REFUSED.items()]
    project.pipeline("\n".join(lines))
    project.write("aws.yaml", json.dumps({"target": {"name": "local", "aws": TARGET["aws"]}}))
    stages = project.run("--config", "aws.yaml", exits=1)["stages"]
    return {uses: stages[uses.replace(".", "-")] for uses in REFUSED}


@pytest.mark.parametrize("uses", REFUSED)
def test_a_model_that_differs_is_refused(refusals: dict[str, dict[str, Any]], uses: str) -> None:
    found = refusals[uses]
    assert found["state"] == "failed", found
    assert re.search(REFUSED[uses][1], found["error"])


def test_every_stage_type_is_here(tmp_path: Path) -> None:
    types = {str(described["uses"]) for described in describe_stage_types(tmp_path)}
    assert types == {*REFUSED, *NOTHING_TO_COMPARE}
