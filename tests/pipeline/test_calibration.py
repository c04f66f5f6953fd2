"""Calibration samples from arrays, pictures and functions: the same values, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from deploy_runner.errors import StageError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import CALIBRATION, ROOT


def quantize(tmp_path: Path, model: Path, calibration: Path | None, **params: Any) -> StageRun:
    inputs = {"model": model, "calibration": calibration}
    return run_stage(
        stage("onnx.quantize_static"), tmp_path / "run", inputs=inputs, params=params, project=tmp_path
    )


def digits() -> np.ndarray[Any, Any]:
    with np.load(CALIBRATION) as arrays:
        return arrays["x"][:40]  # type: ignore[no-any-return]


def test_pictures_arrays_and_functions_with_the_same_values_give_the_same_model(
    tmp_path: Path, fp32: Path
) -> None:
    levels = np.rint(digits() * 255).astype(np.uint8)
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for i, level in enumerate(levels[:, 0]):
        Image.fromarray(level).save(pictures / ("more" if i > 30 else "") / f"{i:03}.png")
    (pictures / "notes.txt").write_text("no picture")
    order = sorted(range(len(levels)), key=lambda i: ("more/" if i > 30 else "") + f"{i:03}.png")
    values = (levels[order].astype(np.float32) / 255 - 0.5) / 0.25
    np.savez(tmp_path / "c.npz", x=values)
    (tmp_path / "samples.py").write_text(
        "import numpy as np\n"
        "def batches(path):\n    yield from np.array_split(np.load(path)['x'], 7)\n"
        "def singles(path):\n    yield from ({'image': row} for row in np.load(path)['x'])\n"
    )
    normalise = {"pictures": {"mean": [0.5], "std": [0.25]}}
    made = [
        quantize(tmp_path, fp32, pictures, **normalise),
        quantize(tmp_path, fp32, tmp_path / "c.npz"),
        quantize(tmp_path, fp32, tmp_path / "c.npz", function="samples.py:batches"),
        quantize(tmp_path, fp32, tmp_path / "c.npz", function="samples.py:singles"),
    ]
    assert len({(run["model"] / "model.onnx").read_bytes() for run in made}) == 1
    assert all(run.figures["calibration_samples"] == 40 for run in made)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_samples_may_differ_in_length_and_a_size_of_minus_one_is_any(tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng(0)
    weight = helper.make_tensor("w", TensorProto.FLOAT, (8, 8), rng.standard_normal(64).astype(np.float32))
    tokens, scores = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (-1, -1, 8)) for n in ("x", "y"))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "paddle", [tokens], [scores], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "samples.py").write_text(
        "import numpy as np\n"
        "def samples(path):\n    rng = np.random.default_rng(1)\n"
        "    return (rng.standard_normal((1, n, 8), np.float32) for n in range(1, 40))\n"
    )
    made = quantize(tmp_path, tmp_path / "model.onnx", None, function="samples.py:samples", method=method)
    assert made.figures["calibration_samples"] == 39
    assert made.figures["cosine"] > 0.999


def test_a_bias_may_be_a_row(tmp_path: Path) -> None:
    """tf2onnx writes MatMul and Add of a row, from which onnxruntime makes a Gemm that it can't quantize."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((16, 8), np.float32), rng.standard_normal((1, 8), np.float32)
    tensors = [onnx.numpy_helper.from_array(array, name) for array, name in ((weight, "w"), (bias, "b"))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("n", s)) for n, s in (("x", 16), ("y", 8))]
    graph = helper.make_graph(nodes, "tf2onnx", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "c.npz", x=rng.standard_normal((64, 16), np.float32))
    made = quantize(tmp_path, tmp_path / "model.onnx", tmp_path / "c.npz", weights="int8")
    assert made.figures["cosine"] > 0.99


def _not_a_picture(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"no picture at all")


def _bomb(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "a.png")


@pytest.mark.parametrize(
    ("make", "params", "said"),
    [
        (_not_a_picture, {}, "a.png is not a picture"),
        (_bomb, {}, "a.png is not a picture: .*exceeds limit"),
        (lambda folder: None, {}, "the calibration data is empty"),
        (
            _not_a_picture,
            {"pictures": {"mean": [0.1, 0.2], "std": [1.0]}},
            "mean and std must have 1 or 1 values",
        ),
    ],
)
def test_a_bad_folder_of_pictures_is_one_sentence(
    tmp_path: Path, fp32: Path, make: Any, params: dict[str, Any], said: str
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    make(pictures)
    with pytest.raises(StageError, match=said):
        quantize(tmp_path, fp32, pictures, **params)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("yield {'pixels': 1}", "the calibration function yields no 'image', only pixels"),
        ("yield np.zeros((3, 3), np.float32)", r"a sample of 'image' has the shape \(3,\)"),
        ("raise OSError('no disk')\n    yield", "the calibration function fails: no disk at samples.py:3"),
        ("yield np.zeros((1, 8, 8), int)", "is int64, the model takes float32"),
        ("return iter(())", "the calibration data is empty"),
    ],
)
def test_a_bad_function_is_one_sentence(tmp_path: Path, fp32: Path, body: str, said: str) -> None:
    (tmp_path / "samples.py").write_text(f"import numpy as np\ndef make(path):\n    {body}\n")
    with pytest.raises(StageError, match=said):
        quantize(tmp_path, fp32, None, function="samples.py:make")


def test_nothing_to_calibrate_with_says_what_to_give(tmp_path: Path, fp32: Path) -> None:
    with pytest.raises(StageError, match="there is no calibration data") as error:
        quantize(tmp_path, fp32, None)
    assert "function" in error.value.fix


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.asfortranarray(np.zeros((4, 1, 8, 8), np.float32)), "Fortran order"),
        (np.array(1.0, np.float32), "a single value"),
    ],
)
def test_arrays_that_cannot_be_streamed_are_named(tmp_path: Path, fp32: Path, array: Any, said: str) -> None:
    np.savez(tmp_path / "c.npz", x=array)
    with pytest.raises(StageError, match=said):
        quantize(tmp_path, fp32, tmp_path / "c.npz")


def test_an_archive_far_larger_than_the_memory_is_streamed(tmp_path: Path, fp32: Path) -> None:
    """Read a 1 GB array of samples in a process that may have 300 MB."""
    script = (
        "import re, sys, zipfile\nfrom pathlib import Path\nimport numpy as np\n"
        "from deploy_runner.stages.model.calibration import Slot, Source, open_samples\n"
        "path = Path(sys.argv[1])\n"
        "with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as z, z.open('x.npy', 'w', force_zip64=True) as f:\n"
        "    np.lib.format.write_array_header_1_0(f, {'descr': '<f4', 'fortran_order': False, 'shape': (4000, 256, 256)})\n"
        "    for i in range(4000): f.write(np.full((256, 256), i, np.float32).tobytes())\n"
        "samples = open_samples(None, Source(), path, [Slot('image', 'float32', (None, 256, 256))])\n"
        "print(sum(int(s['image'][0, 0, 0]) for s in samples), re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "big.npz")], cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    total, peak_kib = map(int, done.stdout.split())
    assert total == sum(range(4000))
    assert peak_kib * 1024 < 300e6
