"""openvino.convert and openvino.quantize: converted, loaded by OpenVINO, compared with the original.

The extra is 190 MB, so what runs OpenVINO is slow: `openvino` brings it into this process, `openvino_python` is
an environment that has it.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy_runner.errors import GateError, StageError
from deploy_runner.stages.model.bundles import Bundle, load_bundle
from deploy_runner.stages.openvino import ir
from deploy_runner.testing import StageRun
from tests.bundles import CASES, turn_one_sample
from tests.bundles import bundle as bundle_of
from tests.conftest import CALIBRATION, DIGITS, HELD, Project
from tests.pipeline import strangers
from tests.pipeline.nets import prepare, run
from tests.pipeline.strange_nets import NETS

PIPELINE = """
weights: {uses: checkpoint.state_dict, inputs: {checkpoint: digits/digits.pt}}
model:
  uses: model.prepare
  inputs: {weights: "${{ stages.weights.outputs.weights }}", samples: digits/heldout.npz}
  with: {factory: "digits/model.py:build", example: {shape: [1, 1, 8, 8]}}
onnx: {uses: onnx.export, inputs: {model: "${{ stages.model.outputs.model }}"}}
ir:
  uses: openvino.convert
  inputs: {model: "${{ stages.onnx.outputs.model }}", reference: "${{ stages.model.outputs.model }}"}
int8:
  uses: openvino.quantize
  inputs:
    model: ${{ stages.ir.outputs.model }}
    reference: ${{ stages.model.outputs.model }}
    calibration: digits/calibration.npz
    data: digits/heldout.npz
  with: {max_drop: 0.5}
accuracy:
  uses: verify.accuracy
  inputs:
    candidate: ${{ stages.int8.outputs.model }}
    reference: ${{ stages.model.outputs.model }}
    data: digits/heldout.npz
best:
  uses: select
  inputs:
    candidates: {int8: "${{ stages.int8.outputs.model }}"}
    accuracy: {int8: "${{ stages.accuracy.outputs.report }}"}
    reference: ${{ stages.model.outputs.model }}
"""


def convert(folder: Path, model: Path, reference: Path, **params: Any) -> StageRun:
    return run("openvino.convert", folder, inputs={"model": model, "reference": reference}, params=params)


def converted(folder: Path, bundle: Path, **params: Any) -> StageRun:
    return convert(folder, run("onnx.export", folder, inputs={"model": bundle})["model"], bundle, **params)


def quantize(folder: Path, model: Path, reference: Path, **given: Any) -> StageRun:
    inputs = {"model": model, "reference": reference, "calibration": CALIBRATION}
    inputs |= {name: given.pop(name) for name in ("calibration", "data") if name in given}
    return run("openvino.quantize", folder, inputs=inputs, params=given)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def digits(folder: Path, bundle: Path, fp32: Path, openvino_python: Path) -> Path:
    """The digits as an IR."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(next(openvino_python.parent.parent.glob("lib/python*/site-packages")))
        return convert(folder, fp32, bundle)["model"]


def test_without_the_extra_it_is_named(tmp_path: Path) -> None:
    project = Project(tmp_path)
    nodes = [strangers.node("Relu", "x", "y")]
    ports = dict.fromkeys(("x", "y"), (strangers.FLOAT, ("batch", 4)))
    strangers.save(tmp_path / "m.onnx", nodes, {"x": ports["x"]}, {"y": ports["y"]})
    project.pipeline("""
        taken: {uses: model.onnx, inputs: {model: m.onnx}}
        ir:
          uses: openvino.convert
          inputs: {model: "${{ stages.taken.outputs.onnx }}", reference: "${{ stages.taken.outputs.model }}"}
    """)
    error = project.run(exits=1)["stages"]["ir"]["error"]
    assert re.fullmatch(
        r"the module openvino, which convert.py:\d+ imports, is not installed \(pip install 'deploy-runner\[openvino\]'\)",
        error,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, "branch", "cnn"])
def test_every_model_agrees_with_eager(tmp_path: Path, openvino: None, name: str) -> None:
    bundle = bundle_of(tmp_path, name)["model"]
    made = converted(tmp_path, bundle)
    assert made.figures["max_abs"] < 1e-4
    again = convert(tmp_path / "again", tmp_path / "onnx.export/outputs/model", bundle)
    assert bytes_of(made["model"]) == bytes_of(again["model"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_so_do_the_nets_of_strangers(tmp_path: Path, openvino: None, name: str) -> None:
    source, example, params = NETS[name]
    bundle = prepare(tmp_path, source, example, **params)["model"]
    made = converted(tmp_path, bundle)
    assert made.figures["max_abs"] < 1e-5
    reference = load_bundle(bundle)
    model = ir.read(made["model"])
    for port in reference.inputs:
        shape = model.input(port.name).partial_shape
        assert [axis for axis, size in enumerate(shape) if size.is_dynamic] == list(port.dynamic)
    answers = ir.runner(made["model"], threads=1)(reference.cases[0].inputs)
    assert {n: a.dtype for n, a in answers.items()} == {
        n: a.dtype for n, a in reference.cases[0].outputs.items()
    }


@pytest.mark.slow
def test_so_do_a_transformer_and_a_file_of_a_stranger(tmp_path: Path, openvino: None) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    bundle = run("model.transformers", tmp_path, inputs={"folder": tmp_path / "bert"})["model"]
    made = converted(tmp_path, bundle)
    assert made.figures["max_abs"] < 1e-6
    small = quantize(tmp_path, made["model"], bundle, calibration=bundle, transformer=True)
    assert small.figures["cosine"] > 0.99

    file = strangers.save(
        tmp_path / "strange/m.onnx",
        [strangers.node("MatMul", "x w", "h"), strangers.node("HardSwish", "h", "y")],
        {"x": (strangers.FLOAT, (None, 8))}, {"y": (strangers.FLOAT, (None, 3))}, [strangers.weight("w", 8, 3)],
    )  # fmt: skip
    taken = strangers.take(tmp_path / "strange", file)
    assert convert(tmp_path / "strange", taken["onnx"], taken["model"]).figures["max_abs"] < 1e-6


@pytest.mark.slow
def test_float16_is_half_and_stays_near(
    tmp_path: Path, openvino: None, bundle: Path, fp32: Path, digits: Path
) -> None:
    made = convert(tmp_path, fp32, bundle, precision="float16")
    whole = sum(path.stat().st_size for path in digits.iterdir())
    assert made.figures["bytes"] < 0.6 * whole
    assert 1e-6 < made.figures["max_abs"] < 0.1
    with pytest.raises(GateError, match="differs from the original"):
        convert(tmp_path / "strict", fp32, bundle, precision="float16", atol=1e-5)


@pytest.mark.slow
def test_a_model_that_differs_is_refused(
    tmp_path: Path, openvino: None, bundle: Path, fp32: Path, digits: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(bundle, wrong)
    turn_one_sample(bundle / "reference.npz", wrong / "reference.npz")
    with pytest.raises(GateError, match="differs from the original by up to .*; worst at .*, sample 0"):
        convert(tmp_path, fp32, wrong)
    with pytest.raises(GateError, match="deviates too much from the original: on the reference cases"):
        quantize(tmp_path, digits, wrong)


@pytest.mark.slow
def test_so_is_one_that_differs_for_other_data_alone(
    tmp_path: Path, openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenVINO reads in place of a model that chooses by the sign of a sum is its one branch."""
    bundle = bundle_of(tmp_path, "branch")["model"]
    model = run("onnx.export", tmp_path, inputs={"model": bundle})["model"]
    proto = onnx.load(model / "model.onnx")
    (choice,) = (node for node in proto.graph.node if node.op_type == "If")
    chosen = next(a.g for a in choice.attribute if a.name == "then_branch")
    proto.graph.node.remove(choice)
    proto.graph.node.extend(chosen.node)
    proto.graph.node.append(strangers.node("Identity", chosen.output[0].name, choice.output[0]))
    onnx.save(proto, tmp_path / "one.onnx")
    import openvino as library

    read = library.convert_model
    monkeypatch.setattr(library, "convert_model", lambda file: read(tmp_path / "one.onnx"))
    cases = [case for case in load_bundle(bundle).cases if case.inputs["x"].sum() > 0]
    monkeypatch.setattr(Bundle, "cases", cases)
    with pytest.raises(
        GateError, match="data unlike the example's, on which the model's control flow depends"
    ):
        convert(tmp_path, model, bundle)


@pytest.mark.slow
def test_float64_is_refused_since_it_is_computed_in_float32(tmp_path: Path, openvino: None) -> None:
    source = """
def Net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
"""
    bundle = prepare(tmp_path, source, {"shape": [2, 4], "dtype": "float64"})["model"]
    with pytest.raises(GateError, match="differs from the original") as error:
        converted(tmp_path, bundle)
    assert error.value.fix == "OpenVINO computes float64 in float32: set `atol`, or stay with ONNX"
    assert convert(tmp_path, tmp_path / "onnx.export/outputs/model", bundle, atol=1e-6).figures["max_abs"] > 0


@pytest.mark.slow
def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path, openvino: None) -> None:
    square = {"x": (strangers.FLOAT, ("batch", 3, 3))}
    file = strangers.save(
        tmp_path / "m.onnx", [strangers.node("Det", "x", "y")], square, {"y": (strangers.FLOAT, ("batch",))}
    )
    taken = strangers.take(tmp_path, file)
    with pytest.raises(
        StageError, match="can't convert the model: No conversion rule found for operations: Det"
    ):
        convert(tmp_path, taken["onnx"], taken["model"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "fix"),
    [
        ("onnx.quantize_static", "quantize the result with openvino.quantize"),
        ("onnx.quantize_dynamic", "quantize the result with openvino.quantize"),
        ("onnx.float16", "the float32 model of onnx.export with `precision: float16`"),
    ],
)
def test_what_is_small_before_has_its_advice(
    tmp_path: Path, openvino: None, bundle: Path, fp32: Path, made: str, fix: str
) -> None:
    more = {"calibration": CALIBRATION} if made == "onnx.quantize_static" else {"reference": bundle}
    small = run(made, tmp_path, inputs={"model": fp32, **more})["model"]
    with pytest.raises(GateError, match="differs from the original by up to") as error:
        convert(tmp_path, small, bundle)
    assert fix in error.value.fix


@pytest.mark.slow
def test_what_verifies_takes_it(tmp_path: Path, openvino: None, bundle: Path, digits: Path) -> None:
    pair = {"candidate": digits, "reference": bundle}
    assert run("verify.parity", tmp_path, inputs=pair).figures["max_abs"] < 1e-4
    assert run("verify.latency", tmp_path, inputs=pair, params={"rounds": 5}).figures["latency_ratio"] > 0
    assert run("verify.size", tmp_path, inputs=pair).figures["bytes"] == sum(
        map(len, bytes_of(digits).values())
    )
    accuracy = run("verify.accuracy", tmp_path, inputs={**pair, "data": HELD}).figures
    assert accuracy["drop"] == 0
    alone = run("verify.accuracy", tmp_path / "alone", inputs={"candidate": digits, "data": HELD}).figures
    assert alone["accuracy"] == accuracy["accuracy"]


@pytest.mark.slow
def test_int8_is_a_third_and_the_same_again(
    tmp_path: Path, openvino: None, bundle: Path, digits: Path
) -> None:
    made = quantize(tmp_path, digits, bundle)
    assert made.figures["cosine"] > 0.99
    assert made.figures["smaller"] > 3
    assert made.figures["quantized"] == 4
    assert bytes_of(made["model"]) == bytes_of(quantize(tmp_path / "again", digits, bundle)["model"])
    other = quantize(tmp_path / "8 bits", digits, bundle, reduce_range=False)
    assert bytes_of(other["model"]) != bytes_of(made["model"])
    pair = {"candidate": made["model"], "reference": bundle}
    assert (
        run("verify.accuracy", tmp_path, inputs={**pair, "data": HELD}, params={"max_drop": 0.5}).figures[
            "drop"
        ]
        < 0.5
    )
    with pytest.raises(StageError, match="the model is already quantized"):
        quantize(tmp_path / "twice", made["model"], bundle)
    with pytest.raises(GateError, match="differ by up to"):
        run("verify.parity", tmp_path, inputs=pair)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_drop": 1.0}, "`max_drop` needs the input `data`"),
        ({"data": HELD}, "`data` needs `max_drop`"),
        ({"max_drop": 1.0, "data": CALIBRATION}, "the data has no labels `y`"),
        ({"exclude": ["node_conv2"]}, "exclude: the model has no layer 'node_conv2'"),
        ({"calibration": None}, "there is no calibration data"),
    ],
    ids=["no data", "no max_drop", "no labels", "no such layer", "no samples"],
)
def test_a_wrong_request_is_one_sentence(
    tmp_path: Path, openvino: None, bundle: Path, digits: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        quantize(tmp_path, digits, bundle, **given)


@pytest.mark.slow
def test_dead_calibration_is_refused(tmp_path: Path, openvino: None, bundle: Path, digits: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros((20, 1, 8, 8), "f4"))
    with pytest.raises(GateError, match="the result deviates too much from the original: .* cosine") as error:
        quantize(tmp_path, digits, bundle, calibration=tmp_path / "c.npz")
    assert "calibrate on varied real samples" in error.value.fix


SMALL_AND_LARGE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(16))
            self.first.bias.zero_()
            self.second.weight.copy_(torch.eye(2, 16))
            self.second.bias.zero_()

    def forward(self, x):
        return self.second(self.first(x) * torch.tensor([1.0] * 15 + [0.0]))
"""
"""Its answer is in the first two numbers; the last one, which it doesn't look at, is 10,000 times as large."""


@pytest.mark.slow
def test_layers_return_to_float_until_the_accuracy_is_kept(tmp_path: Path, openvino: None) -> None:
    x = np.random.default_rng(0).standard_normal((200, 16)).astype("f4")
    x[:, 15] *= 1e4
    np.savez(tmp_path / "data.npz", x=x, y=x[:, :2].argmax(1))
    bundle = prepare(tmp_path, SMALL_AND_LARGE, {"shape": [2, 16]})["model"]
    model = converted(tmp_path, bundle)["model"]
    given = {"calibration": tmp_path / "data.npz", "min_cosine": -1, "min_agreement": 0}
    lossy = quantize(tmp_path / "lossy", model, bundle, **given)
    kept = quantize(tmp_path / "kept", model, bundle, **given, data=tmp_path / "data.npz", max_drop=1)
    assert kept.figures["drop"] <= 1
    assert kept.figures["quantized"] < lossy.figures["quantized"]


@pytest.mark.slow
def test_a_pipeline_runs_once_and_gives_the_same_bytes(
    tmp_path: Path, openvino_python: Path, digits: Path
) -> None:
    project = Project(tmp_path, str(openvino_python))
    shutil.copytree(DIGITS, tmp_path / "digits")
    project.pipeline(PIPELINE)
    assert set(project.states().values()) == {"ran"}
    assert set(project.states().values()) == {"hit"}
    project.cli("get", "ir.model", "--to", "ir")
    assert bytes_of(tmp_path / "ir") == bytes_of(digits)
    assert "FAIL" not in project.cli("doctor").stdout
