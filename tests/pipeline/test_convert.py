"""`convert`: a checkpoint to several formats at once, by the real command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deploy_runner.commands.convert import FORMATS
from tests.conftest import DIGITS, ROOT, Project

DIGITS_OPTIONS = ("--factory", "model.py:build", "--shape", "1,1,8,8")


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    """A folder with a checkpoint and a model, and no pipeline."""
    made = Project(tmp_path / "first")
    for name in ("digits.pt", "model.py", "calibration.npz"):
        shutil.copy(DIGITS / name, made.folder / name)
    return made


@pytest.mark.slow
def test_every_format_is_made_and_copied_out(folder: Project) -> None:
    done = folder.cli(
        "convert", "digits.pt", "--to", ",".join(FORMATS), *DIGITS_OPTIONS, "--calibration", "calibration.npz"
    )
    files = {
        p.relative_to(folder.folder / "converted").as_posix()
        for p in (folder.folder / "converted").rglob("*")
    }
    for name in (
        "safetensors/weights.safetensors", "full/model/load_model.py", "torchscript/model.pt", "script/model.pt",
        "pt2/model.pt2", "aot/model.pt2", "onnx/model/model.onnx", "fp16/model/model.onnx", "int8/model/model.onnx", "ptl/model.ptl",
        "pte/model.pte", "sagemaker/model.tar.gz",
    ):  # fmt: skip
        assert name in files
        assert f"converted/{name.split('/')[0]}/" in done.stdout
    assert "onnx.quantize_static" in (folder.folder / "convert.yaml").read_text()
    assert folder.run("convert.yaml")["hit"] == 14


def test_pictures_judge_the_int8_model_that_they_calibrate(folder: Project) -> None:
    digits = np.load(folder.folder / "calibration.npz")["x"]
    (folder.folder / "pictures").mkdir()
    for index, digit in enumerate(digits[:40, 0]):
        Image.fromarray((digit * 255).astype("u1")).save(folder.folder / f"pictures/{index}.png")
    folder.cli("convert", "digits.pt", "--to", "int8", *DIGITS_OPTIONS, "--calibration", "pictures")
    made = folder.run("convert.yaml")["stages"]["int8"]["figures"]
    assert made["calibration_samples"] == 40
    assert made["cosine"] > 0.98


@pytest.mark.slow
def test_a_second_taste_uses_what_the_first_has_made(folder: Project) -> None:
    folder.cli("convert", "digits.pt", "--to", "onnx", *DIGITS_OPTIONS)
    done = folder.cli("convert", "digits.pt", "--to", "int8", *DIGITS_OPTIONS)
    assert "onnx.quantize_dynamic" in (folder.folder / "convert.yaml").read_text()
    assert "1 ran" in done.stdout


@pytest.mark.slow
def test_what_is_not_said_is_looked_for(folder: Project) -> None:
    folder.cli("convert", "digits.pt", "--to", "onnx")
    made = yaml.safe_load((folder.folder / "convert.yaml").read_text())["stages"]["model"]["with"]
    assert made == {"factory": "model.py:DigitsCNN", "example": {"shape": [1, 1, 8, 8]}}


def test_an_onnx_file_has_the_formats_that_can_be_made_of_it(folder: Project) -> None:
    shutil.copy(ROOT / "examples/detector/detector.onnx", folder.folder)
    folder.cli("convert", "detector.onnx", "--to", "onnx,fp16")
    assert {path.name for path in (folder.folder / "converted").iterdir()} == {"onnx", "fp16"}
    assert (
        "detector.onnx can't become ptl"
        in folder.cli("convert", "detector.onnx", "--to", "ptl", exits=2).stderr
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nope.pt", "--to", "onnx", *DIGITS_OPTIONS], "error: nope.pt does not exist"),
        (["digits.pt", "--to", "tflite", *DIGITS_OPTIONS], "error: unknown format 'tflite' (the formats are safetensors"),
        (["digits.pt", "--to", "onnx", "--factory", "model", "--shape", "1"], "e.g. --factory model.py:build"),
        (["digits.pt", "--to", "onnx", "--factory", "m.py:build", "--shape", "1"], "error: m.py does not exist"),
        (["digits.pt", "--to", "onnx", "--factory", "model.py:build", "--shape", "1,x"], "not a list of whole numbers"),
        (["/etc/hostname", "--to", "onnx", *DIGITS_OPTIONS], "error: /etc/hostname is outside"),
        (["digits.pt", "--to", "onnx", *DIGITS_OPTIONS, "--dtype", "float31"], "convert.yaml:"),
        (["digits.pt", "--to", "onnx", "--kwargs", "width"], "is not of the form 'num_classes: 10, depth: 2'"),
        (["model.py", "--to", "onnx"], "error: model.py is code, not a trained model"),
        (["digits.pt", "--to", "onnx", *DIGITS_OPTIONS, "--pipeline", "model.py"], "error: model.py already exists"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_sentence(folder: Project, args: list[str], said: str) -> None:
    assert said in folder.cli("convert", *args, exits=2).stderr
    assert not (folder.folder / "converted").exists()


def test_what_is_there_is_not_overwritten(folder: Project) -> None:
    place = folder.write("converted/safetensors/weights.safetensors", "mine")
    done = folder.cli("convert", "digits.pt", "--to", "safetensors", *DIGITS_OPTIONS, exits=2)
    assert "already exists (choose another folder with --output)" in done.stderr
    assert place.read_text() == "mine"
