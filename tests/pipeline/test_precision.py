"""Comparing: by the rounding of each output's own type, and over values that are not finite."""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploy_runner.errors import GateError, StageError
from deploy_runner.registry import Registry
from deploy_runner.stages.model.bundles import Case
from deploy_runner.stages.model.compare import compare
from deploy_runner.stages.package.smoke import Invoke, smoke_test
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import ROOT
from tests.serve.packed import loaded_code

HEAD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)
"""
PLAIN = "    def forward(self, x): return self.b(torch.relu(self.a(x.to(self.a.weight.dtype))))"
MASKED = "    def forward(self, x, allowed): return self.b(self.a(x)).masked_fill(~allowed, float('-inf'))"
SMALL = "    def forward(self, x): return self.b(torch.relu(self.a(x))) * 1e-7"


def run(uses: str, folder: Path, **given: Any) -> StageRun:
    found = Registry(ROOT / "tests").get(uses)
    assert found is not None
    return run_stage(found.cls, folder / uses, **given)


def prepare(folder: Path, forward: str, example: Any, then: str = "", **params: Any) -> StageRun:
    file = folder / f"model_{zlib.crc32((forward + then).encode())}.py"
    file.write_text(f"{HEAD}{forward}\n\ndef build(): return Net(){then}\n")
    namespace: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(file.read_text(), namespace)
    torch.save(namespace["build"]().state_dict(), folder / "c.pt")
    weights = run("checkpoint.state_dict", folder, inputs={"checkpoint": folder / "c.pt"})["weights"]
    return run("model.prepare", folder, project=folder, inputs={"weights": weights},
               params={"factory": f"{file.name}:build", "example": example} | params)  # fmt: skip


@pytest.mark.parametrize(
    ("then", "eps"),
    [
        ("", 2**-23),
        pytest.param(".half()", 2**-10, marks=pytest.mark.slow),
        pytest.param(".bfloat16()", 2**-7, marks=pytest.mark.slow),
    ],
)
def test_each_type_is_compared_by_its_own_rounding(tmp_path: Path, then: str, eps: float) -> None:
    bundle = prepare(tmp_path, PLAIN, {"shape": [2, 4]}, then)["model"]
    told = json.loads((bundle / "bundle.json").read_text())
    assert (
        told["outputs"][0]["dtype"] == {"": "float32", ".half()": "float16", ".bfloat16()": "bfloat16"}[then]
    )
    for found in told["precision"].values():
        row = found["output"]
        assert row["allowed"] == pytest.approx(8 * row["own_error"] + 16 * eps * row["scale"])
        assert 0 < row["own_error"] < 8 * eps * row["scale"]
    allowed = max(found["output"]["allowed"] for found in told["precision"].values())
    for uses in ("torch.trace", "torch.export", "torch.save_full", "onnx.export"):
        figures = run(uses, tmp_path, inputs={"model": bundle}).figures
        assert figures["max_abs"] <= figures["allowed"] <= allowed, uses


def test_a_model_of_a_type_that_no_file_of_numbers_has_is_told_to_turn_its_input(tmp_path: Path) -> None:
    unturned = "    def forward(self, x): return self.b(torch.relu(self.a(x)))"
    with pytest.raises(StageError, match="the model fails on the example") as error:
        prepare(tmp_path, unturned, {"shape": [2, 4]}, ".bfloat16()")
    assert "a module around it that turns its input into the weights' type" in error.value.fix


def test_a_model_whose_source_is_no_file_is_refused_by_torch_script_alone(tmp_path: Path) -> None:
    made_up = "    exec('def forward(self, x): return self.b(torch.relu(self.a(x)))')"
    bundle = prepare(tmp_path, made_up, {"shape": [2, 4]})["model"]
    with pytest.raises(StageError, match="the model can't be compiled") as error:
        run("torch.script", tmp_path, inputs={"model": bundle})
    assert error.value.fix == "try torch.trace or torch.export"
    assert run("torch.trace", tmp_path, inputs={"model": bundle}).figures["max_abs"] < 1e-6


def spoil(file: Path) -> None:
    """Add a thousandth to a bias, of values up to a half."""
    model = onnx.load(file)
    bias = next(t for t in model.graph.initializer if t.name == "b.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-3), bias.name))
    onnx.save(model, file)


def test_a_wrong_weight_is_seen_in_outputs_that_are_all_small(tmp_path: Path) -> None:
    bundle = prepare(tmp_path, SMALL, {"shape": [2, 4]})["model"]
    made = {"candidate": run("onnx.export", tmp_path, inputs={"model": bundle})["model"], "reference": bundle}
    right = run("verify.parity", tmp_path, inputs=made)
    assert right.figures["max_abs"] <= json.loads(right["report"].read_text())["allowed"] < 1e-12
    packed = {"model": made["candidate"], "reference": bundle}
    context = run("package.container", tmp_path, inputs=packed)["context"]
    spoil(made["candidate"] / "model.onnx")
    with pytest.raises(GateError, match="more than the .* that is explained by its type's rounding"):
        run("verify.parity", tmp_path / "wrong", inputs=made)
    assert run("verify.parity", tmp_path / "loose", inputs=made, params={"atol": 1e-5}).figures["max_abs"] > 0
    from deploy_runner.server import trial
    from deploy_runner.server.problems import UnfitArtifact

    assert trial.answers([str(context)], []) == []
    spoil(context / "model" / "model.onnx")
    with pytest.raises(UnfitArtifact, match=r"differs by up to 1\.?\d*e-10, more than the limit of .*"):
        trial.answers([str(context)], [])


def test_the_output_that_is_wrong_is_named_with_its_own_figures() -> None:
    cases = [Case("c", {}, {"large": np.array([[1e6]], np.float32), "small": np.array([[1e-6]], np.float32)})]
    wrong = {"large": np.array([[1e6 + 1]], np.float32), "small": np.array([[2e-6]], np.float32)}
    found = compare(cases, lambda _: wrong)
    assert found.worst == "c, output 'small', sample 0"
    assert (
        found.beyond(None, None)
        == "up to 1e-06, more than the 7.63e-12 that is explained by its type's rounding"
    )
    assert (found.max_abs, round(found.allowed, 3)) == (1, 7.629)


def unpacked(package: Path, folder: Path) -> Invoke:
    """Return what asks a package's own code, as the container does, in JSON that has no NaN."""
    with tarfile.open(package) as tar:
        tar.extractall(folder, filter="data")
    code = loaded_code(folder)

    def invoke(body: bytes) -> bytes:
        answer, _ = code.transform(body, JSON, JSON)
        return json.dumps(json.loads(answer, parse_constant=pytest.fail)).encode()

    return invoke


JSON = "application/json"


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_refused_by_place_unless_allowed(tmp_path: Path) -> None:
    example = {"x": {"shape": [2, 4]}, "allowed": {"shape": [2, 5], "dtype": "bool"}}
    with pytest.raises(
        GateError,
        match=r"output 'output' is -inf at \[\d, \d\] of .*; if that is intended, set `nonfinite: allow`",
    ):
        prepare(tmp_path, MASKED, example)
    bundle = prepare(tmp_path / "..", MASKED, example, nonfinite="allow")["model"]
    for uses in ("torch.trace", "torch.script", "torch.export", "torch.save_full", "torch.quantize_dynamic",
                 "onnx.export"):  # fmt: skip
        figures = run(uses, tmp_path, inputs={"model": bundle}).figures
        assert figures["cosine"] > 0.99, uses
        assert figures["max_abs"] < 0.05, uses
    made = {
        "model": run("onnx.export", tmp_path / "2", inputs={"model": bundle})["model"],
        "reference": bundle,
    }
    packed = run("package.sagemaker", tmp_path, inputs=made)
    invoke = unpacked(packed["package"], tmp_path / "packed")
    assert smoke_test(invoke, packed["smoke"], atol=None, rtol=None) == 8
    with pytest.raises(GateError, match=r"the result is nan where the original is -?\d"):
        smoke_test(
            lambda body: re.sub(rb"-?\d+\.\d+", b"null", invoke(body), count=1),
            packed["smoke"], atol=None, rtol=None,
        )  # fmt: skip
    assert run("package.container", tmp_path, inputs=made).figures["max_abs"] < 1e-6


INF = float("inf")


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [
        ([1, -INF], [1, INF], r"at \[0, 1\]: the result is inf where the original is -inf"),
        ([1, 2], [1, float("nan")], r"at \[0, 1\]: the result is nan where the original is 2"),
        ([-INF, 2], [0, 2], r"at \[0, 0\]: the result is 0 where the original is -inf"),
    ],
)  # fmt: skip
def test_what_is_not_finite_equals_itself_alone(expected: Any, actual: Any, said: str) -> None:
    case = Case("c", {}, {"y": np.array([expected], np.float32)})
    with pytest.raises(GateError, match=said):
        compare([case], lambda _: {"y": np.array([actual], np.float32)})


def test_what_is_not_finite_hides_nothing_beside_it() -> None:
    case = Case("c", {}, {"y": np.array([[-INF, float("nan"), INF, 1.0, 3.0]], np.float32)})
    same = compare([case], lambda _: case.outputs)
    assert (same.max_abs, same.max_rel, round(same.cosine, 9), same.argmax_agreement, same.excess <= 0) == (
        0,
        0,
        1,
        1,
        True,
    )
    other = np.array([[-INF, float("nan"), INF, 3.0, 1.0]], np.float32)
    found = compare([case], lambda _: {"y": other})
    assert found.max_abs == 2
    assert found.cosine == pytest.approx(0.6)
    assert found.argmax_agreement == 0
    assert found.excess > 1.9
