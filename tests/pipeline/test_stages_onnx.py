"""onnx.*, verify.*, select and package.sagemaker on the digits example."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import DIGITS, ROOT, module_of
from tests.pipeline.test_stages_torch import bundle as bundle_of
from tests.pipeline.test_stages_torch import line_of, stage

HELD = DIGITS / "heldout.npz"
CALIBRATION = DIGITS / "calibration.npz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    taken = run_stage(
        stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": DIGITS / "digits.pt"}
    )
    params = {"factory": "examples/digits/model.py:build", "example": {"shape": [1, 1, 8, 8]}}
    inputs = {"weights": taken["weights"], "samples": HELD}
    return run_stage(stage("model.prepare"), folder / "b", inputs=inputs, params=params, project=ROOT)[
        "model"
    ]


@pytest.fixture(scope="module")
def fp32(folder: Path, bundle: Path) -> Path:
    return run_stage(stage("onnx.export"), folder / "fp32", inputs={"model": bundle})["model"]


@pytest.fixture(scope="module")
def int8(folder: Path, fp32: Path) -> Path:
    return quantize(folder / "int8", fp32)["model"]


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
    with pytest.raises(StageError) as error:
        run_stage(
            stage("onnx.export"), tmp_path / "o", inputs={"model": model}, params={"exporter": "dynamo"}
        )
    assert "shop.odd" in error.value.message
    assert line_of("torch.ops.shop.odd(self") in error.value.message


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


def parity(tmp_path: Path, candidate: Path, bundle: Path, **params: Any) -> StageRun:
    return run_stage(
        stage("verify.parity"), tmp_path, inputs={"candidate": candidate, "reference": bundle}, params=params
    )


def test_parity_holds_for_fp32_and_is_refused_for_int8_by_name(
    tmp_path: Path, fp32: Path, int8: Path, bundle: Path
) -> None:
    held = parity(tmp_path / "a", fp32, bundle, atol=1e-5, rtol=1e-5)
    assert held.figures["samples"] == 65
    with np.load(held["worst"]) as worst:
        difference = np.abs(worst["actual/output"] - worst["expected/output"])
        assert worst["in/image"].shape == (1, 1, 8, 8)
        assert 0 < difference.max() <= held.figures["max_abs"]
    with pytest.raises(
        GateError,
        match=r"verify.parity: the outputs differ by up to .*; worst at samples64, output 'output', sample \d+",
    ):
        parity(tmp_path / "b", int8, bundle, atol=1e-5, rtol=1e-5)
    assert parity(tmp_path / "c", int8, bundle, min_argmax_agreement=0.9).figures["argmax_agreement"] > 0.9
    with pytest.raises(GateError, match="the cosine similarity falls to"):
        parity(tmp_path / "d", int8, bundle, min_cosine=1.0)


def test_accuracy_is_measured_against_the_reference(tmp_path: Path, int8: Path, bundle: Path) -> None:
    inputs = {"candidate": int8, "data": HELD, "reference": bundle}
    report = json.loads(run_stage(stage("verify.accuracy"), tmp_path, inputs=inputs)["report"].read_text())
    assert report["reference_accuracy"] > 97
    assert report["drop"] <= 0.5
    with pytest.raises(GateError, match=r"the accuracy is 9\d\.\d\d %, below 100 %"):
        run_stage(stage("verify.accuracy"), tmp_path / "b", inputs=inputs, params={"min_accuracy": 100.0})


def test_accuracy_takes_a_metric_of_ones_own(tmp_path: Path, fp32: Path) -> None:
    (tmp_path / "metric.py").write_text("def always(outputs, labels):\n    return 0.5\n")
    made = run_stage(stage("verify.accuracy"), tmp_path, inputs={"candidate": fp32, "data": rename(tmp_path)},
                     params={"metric": "metric.py:always"}, project=tmp_path)  # fmt: skip
    assert made.figures["accuracy"] == 50.0


def rename(tmp_path: Path) -> Path:
    with np.load(HELD) as held:
        np.savez(tmp_path / "named.npz", image=held["x"], y=held["y"])
    return tmp_path / "named.npz"


def test_latency_and_size_are_gates_too(tmp_path: Path, fp32: Path, int8: Path, bundle: Path) -> None:
    inputs = {"candidate": int8, "reference": bundle}
    made = run_stage(stage("verify.latency"), tmp_path / "l", inputs=inputs, params={"rounds": 20})
    assert made.figures["latency_ratio"] > 0
    assert made.figures["p95_ratio"] > 0
    report = json.loads(made["report"].read_text())
    assert report["p95_ratio"] == pytest.approx(
        report["p95_us"]["candidate"] / report["p95_us"]["reference"], rel=0.1
    )
    with pytest.raises(GateError, match="the 95th percentile of the latency is"):
        run_stage(
            stage("verify.latency"),
            tmp_path / "p",
            inputs=inputs,
            params={"rounds": 5, "max_p95_ratio": 1e-6},
        )
    with pytest.raises(GateError, match="times the original"):
        run_stage(
            stage("verify.latency"), tmp_path / "m", inputs=inputs, params={"rounds": 5, "max_ratio": 1e-6}
        )
    sized = {"candidate": int8, "reference": fp32}
    assert (
        run_stage(stage("verify.size"), tmp_path / "s", inputs=sized, params={"min_smaller": 3.0}).figures[
            "smaller"
        ]
        > 3
    )
    with pytest.raises(GateError, match="the limit is 1000"):
        run_stage(stage("verify.size"), tmp_path / "t", inputs=sized, params={"max_bytes": 1000})


def report(path: Path, drop: float) -> Path:
    path.write_text(json.dumps({"accuracy": 99.0 - drop, "drop": drop}))
    return path


def test_select_takes_the_best_within_the_limit(tmp_path: Path, fp32: Path, int8: Path, bundle: Path) -> None:
    inputs = {
        "candidates": {"a": fp32, "b": int8},
        "accuracy": {"a": report(tmp_path / "a", 0.0), "b": report(tmp_path / "b", 0.7)},
        "reference": bundle,
    }
    strict = run_stage(stage("select"), tmp_path / "s", inputs=inputs, params={"objective": "size"})
    assert strict.figures["chosen"] == "a"
    loose = run_stage(
        stage("select"), tmp_path / "l", inputs=inputs, params={"objective": "size", "max_drop": 1.0}
    )
    assert loose.figures["chosen"] == "b"
    assert "loss of accuracy (points)" in loose["plot"].read_text()
    assert (loose["model"] / "model.onnx").read_bytes() == (int8 / "model.onnx").read_bytes()
    inputs["accuracy"] = {"a": report(tmp_path / "a", 2.0), "b": report(tmp_path / "b", 3.0)}
    with pytest.raises(
        GateError, match=r"no candidate meets the limits: a loses 2\.00 points; b loses 3\.00 points"
    ):
        run_stage(stage("select"), tmp_path / "n", inputs=inputs)


def test_a_package_is_reproducible_and_has_the_containers_layout(
    tmp_path: Path, int8: Path, bundle: Path
) -> None:
    made = []
    for name in ("one", "two"):
        before = os.umask(0o077 if name == "two" else 0o022)
        inputs = {"model": int8, "reference": bundle}
        made.append(
            run_stage(stage("package.sagemaker"), tmp_path / name, inputs=inputs)["package"].read_bytes()
        )
        os.umask(before)
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "one/outputs/model.tar.gz") as tar:
        members = {m.name: m for m in tar}
    assert sorted(members) == [
        "code",
        "code/inference.py",
        "code/requirements.txt",
        "model.json",
        "model.onnx",
    ]
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members.values()} == {(0, 0, "", 0)}


def test_a_package_that_the_container_would_reject_fails(tmp_path: Path, int8: Path, bundle: Path) -> None:
    code = tmp_path / "inference.py"
    code.write_text("def model_fn(model_dir):\n    return None\n")
    inputs = {"model": int8, "reference": bundle, "code": code}
    with pytest.raises(StageError, match=r"code/inference.py defines no input_fn, which the container calls"):
        run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=inputs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model_fn(:\n", "fails when it is imported: SyntaxError"),
        ("def model_fn(d): return open(d + '/x')\ninput_fn = predict_fn = output_fn = model_fn", "fails when it calls model_fn: FileNotFoundError"),
        ("def model_fn(d): pass\ndef input_fn(b, k): return 1 / 0\npredict_fn = output_fn = model_fn", "fails when it answers a request: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_code_that_fails_in_the_container_is_one_sentence(
    tmp_path: Path, int8: Path, bundle: Path, text: str, said: str
) -> None:
    (tmp_path / "inference.py").write_text(text)
    inputs = {"model": int8, "reference": bundle, "code": tmp_path / "inference.py"}
    with pytest.raises(StageError, match=said):
        run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=inputs)


@pytest.mark.parametrize("kind", ["application/json", "text/csv", "application/x-npy"])
def test_the_packages_own_code_answers_every_content_type(
    tmp_path: Path, fp32: Path, bundle: Path, kind: str
) -> None:
    import io

    from deploy_runner.stages.package import archives

    package = run_stage(stage("package.sagemaker"), tmp_path, inputs={"model": fp32, "reference": bundle})[
        "package"
    ]
    archives.unpack(package, tmp_path / "x")
    code = module_of(tmp_path / "x/code/inference.py")
    with np.load(HELD) as held:
        sample = held["x"][:2]
    buffer = io.BytesIO()
    np.save(buffer, sample)
    csv = "\n".join(",".join(map(str, row)) for row in sample.reshape(2, -1))
    bodies = {
        "application/json": json.dumps(sample.tolist()),
        "text/csv": csv,
        "application/x-npy": buffer.getvalue(),
    }
    model = code.model_fn(str(tmp_path / "x"))
    found = code.predict_fn(code.input_fn(bodies[kind], kind), model)["output"]
    expected = np.load(io.BytesIO(code.output_fn({"output": found}, "application/x-npy")))
    assert found.shape == (2, 10)
    assert np.allclose(found, expected)
    with pytest.raises(ValueError, match="is not supported"):
        code.input_fn(b"", "image/png")
    with pytest.raises(ValueError, match="neither 'inputs' nor 'instances'"):
        code.input_fn('{"x": 1}', "application/json")


def test_torch_is_the_pinned_version() -> None:
    assert torch.__version__.startswith("2.13.0")
