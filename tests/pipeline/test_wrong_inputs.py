"""Every stage type refuses what is not its input in one sentence, whatever the file holds."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.errors import StageError
from deploy_runner.pipeline.interface import input_shapes
from deploy_runner.registry import Registry
from deploy_runner.testing import run_stage
from tests.bundles import bundle
from tests.bundles import stage as kind
from tests.conftest import ROOT

REQUIRED: dict[str, dict[str, Any]] = {
    "model.prepare": {"factory": "models.py:mlp", "example": {"shape": [1, 64]}},
    "checkpoint.resume_check": {"factory": "models.py:mlp", "optimizer": "Adam"},
    "package.kserve": {"name": "net"},
}

ANY_FILE = ("verify.size", "package.sign", "run.command", "run.python")
"""What takes every file."""

KINDS = [k.cls for k in Registry(ROOT / "tests").all() if not k.cls.network and k.cls.uses not in ANY_FILE]


def junk(path: Path) -> Path:
    path.write_bytes(b"neither a model nor an array\n" * 9)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return path


def arrays(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), z=np.zeros((0, 3)))
    return path.with_suffix(".npz").rename(path)


def pickled(path: Path) -> Path:
    torch.save([torch.ones(1)], path)
    return path


def listed(path: Path) -> Path:
    path.write_text(json.dumps([1, 2, {"a": None}]))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def broken_bundle(path: Path) -> Path:
    path.mkdir()
    (path / "bundle.json").write_text('{"factory": 3}')
    (path / "model.onnx").write_bytes(b"\x08\x07")
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make", [junk, empty, archive, arrays, pickled, listed, folder, broken_bundle], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.uses)
def test_what_is_not_its_input_is_one_sentence(tmp_path: Path, kind: Any, make: Any) -> None:
    (tmp_path / "models.py").write_text((ROOT / "tests/models/models.py").read_text())
    given: dict[str, Any] = {}
    for name, shape in input_shapes(kind).items():
        path = make(tmp_path / f"{name}.pt")
        fits = ("folder" if path.is_dir() else "file") in shape.kinds
        path = path if fits else (folder if "folder" in shape.kinds else junk)(tmp_path / f"{name}.other")
        given[name] = {"one": path, "dict": {"a": path}, "list": [path]}[shape.container]
    with pytest.raises(StageError, match=r"\A[^\n]+\Z") as error:
        run_stage(kind, tmp_path / "run", inputs=given, params=REQUIRED.get(kind.uses, {}), project=tmp_path)
    assert error.value.message
    assert str(tmp_path) not in error.value.message


def _bundle(tmp_path: Path) -> Path:
    return bundle(tmp_path, "flagged", example={"shape": [1, 4]})["model"]


@pytest.mark.parametrize(
    ("arrays", "params", "said"),
    [
        ({"x": np.ones((3, 4), "f"), "y": np.ones(5)}, {}, r"there are 5 labels `y`, but 'x' has the shape \(3, 4\)"),
        ({"x": np.ones((3, 4), "f"), "y": np.ones(3)}, {"metric": "m.py:bad"}, r"the metric fails on outputs \(3, 3\) .* at m.py:2"),
        ({"x": np.ones((3, 4), "f"), "y": np.ones(3)}, {"metric": "m.py:text"}, "could not convert string to float"),
        ({"x": np.ones((3, 4), "f"), "y": np.ones(3)}, {"metric": "m.py:nan"}, "the metric returned nan"),
        ({"x": np.ones((3, 4), np.uint8), "y": np.ones(3)}, {}, r"can't run inputs of shape x \(3, 4\)"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_an_accuracy_is_one_sentence(
    tmp_path: Path, arrays: Any, params: dict[str, Any], said: str
) -> None:
    model = _bundle(tmp_path)
    exported = run_stage(kind("onnx.export"), tmp_path / "o", inputs={"model": model})["model"]
    np.savez(tmp_path / "d.npz", **arrays)
    body = "def bad(o, l):\n    return o.nothing\ndef text(o, l):\n    return 'x'\ndef nan(o, l):\n    return float('nan')\n"
    (tmp_path / "m.py").write_text(body)
    inputs = {"candidate": exported, "reference": model, "data": tmp_path / "d.npz"}
    with pytest.raises(StageError, match=said):
        run_stage(kind("verify.accuracy"), tmp_path / "a", inputs=inputs, params=params, project=tmp_path)


def test_doubles_are_taken_for_the_floats_that_they_are(tmp_path: Path) -> None:
    model = _bundle(tmp_path)
    np.savez(tmp_path / "d.npz", x=np.ones((3, 4)), y=np.zeros(3))
    inputs = {"candidate": model, "reference": model, "data": tmp_path / "d.npz"}
    assert run_stage(kind("verify.accuracy"), tmp_path / "a", inputs=inputs).figures["drop"] == 0


@pytest.mark.parametrize(
    "uses", ["onnx.quantize_static", "onnx.quantize_dynamic", "onnx.float16", "onnx.sensitivity"]
)
def test_an_int8_model_is_not_quantized_again(tmp_path: Path, uses: str) -> None:
    model = _bundle(tmp_path)
    exported = run_stage(kind("onnx.export"), tmp_path / "o", inputs={"model": model})["model"]
    once = run_stage(kind("onnx.quantize_dynamic"), tmp_path / "q", inputs={"model": exported})["model"]
    inputs = {"model": once} | ({"reference": model} if uses == "onnx.float16" else {})
    with pytest.raises(StageError, match="the model is already quantized: it contains .*MatMulInteger"):
        run_stage(kind(uses), tmp_path / "again", inputs=inputs)


def test_a_negative_size_and_another_report_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'x' has the shape \[1, -4\]: a size is negative"):
        bundle(tmp_path, "flagged", example={"shape": [1, -4]})
    model = _bundle(tmp_path)
    inputs = {"candidates": {"a": model}, "accuracy": {"a": junk(tmp_path / "a")}, "reference": model}
    with pytest.raises(StageError, match="the input 'a' of `accuracy` is not an accuracy report"):
        run_stage(kind("select"), tmp_path / "s", inputs=inputs)


def test_the_noise_of_the_reference_is_the_same_whatever_the_seed(tmp_path: Path) -> None:
    one = _bundle(tmp_path / "a") / "reference.npz"
    source = run_stage(
        kind("checkpoint.state_dict"), tmp_path / "w", inputs={"checkpoint": tmp_path / "a/flagged.pt"}
    )
    two = run_stage(
        kind("model.prepare"), tmp_path / "b", inputs={"weights": source["weights"]}, project=tmp_path / "a/project",
        params={"factory": "models.py:flagged", "example": {"shape": [1, 4]}}, seed=99,
    )["model"] / "reference.npz"  # fmt: skip
    assert one.read_bytes() == two.read_bytes()
