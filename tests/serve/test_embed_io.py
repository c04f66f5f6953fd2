"""onnx.embed_io: pixels in, labels out, in one file; what differs from the Python path is measured and gated."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from deploy_runner.sdk import GateError, StageError
from deploy_runner.server.raw.rawio import RawIo
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.serve.raw_inputs import SEER, encoded, picture, tokenizer

CODE = (
    SEER
    + """
class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(120, 16), nn.Linear(16, 2)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).mean(1))
"""
)
USUAL = {"resize": 72, "crop": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _made(folder: Path, name: str, example: Any) -> dict[str, Path]:
    """Return a bundle and its ONNX file."""
    folder.mkdir(exist_ok=True)
    (folder / "nets.py").write_text(CODE)
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    torch.manual_seed(0)
    torch.save(scope[name]().state_dict(), folder / "net.pt")
    weights = run_stage(
        stage("checkpoint.state_dict"), folder / "w", inputs={"checkpoint": folder / "net.pt"}
    )
    bundle = run_stage(
        stage("model.prepare"), folder / "b", project=folder, inputs={"weights": weights["weights"]},
        params={"factory": f"nets.py:{name}", **example},
    )["model"]  # fmt: skip
    exported = run_stage(stage("onnx.export"), folder / "o", inputs={"model": bundle})["model"]
    return {"reference": bundle, "model": exported}


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return _made(tmp_path_factory.mktemp("seer"), "Seer", {"example": {"x": {"shape": [2, 3, 64, 64]}}})


def _embedded(folder: Path, made: dict[str, Path], io_params: dict[str, Any], **params: Any) -> Any:
    declared = run_stage(
        stage("model.io"), folder / "i", inputs={"model": made["reference"]}, params=io_params
    )
    inputs = {**made, "io": declared["io"]}
    return declared["io"], run_stage(stage("onnx.embed_io"), folder / "e", inputs=inputs, params=params)


@pytest.mark.parametrize(
    ("changed", "levels"),
    [
        ({}, 1),
        ({"interpolation": "bicubic"}, 3),
        ({"resize": [80, 70]}, 1),
        ({"channels": "BGR", "mean": None, "std": None}, 1),
        ({"resize": None, "crop": None}, 0),
    ],
    ids=["usual", "bicubic", "exact size", "BGR", "as it is"],
)
def test_the_file_answers_pictures_as_the_python_path(
    tmp_path: Path, seer: dict[str, Path], changed: dict[str, Any], levels: float
) -> None:
    answer: dict[str, Any] = {"labels": ["cat", "cow", "dog"], "top": 2}
    params = {"picture": {**USUAL, **changed}, "answer": answer}
    sizes = (
        ((64, 64),) if changed.get("resize", 72) is None else ((200, 151), (73, 300), (64, 99), (1600, 1200))
    )
    data = [encoded(picture(*size), "PNG") for size in sizes]
    (tmp_path / "data").mkdir()
    for place, one in enumerate(data):
        (tmp_path / f"data/{place}.png").write_bytes(one)
    declared = run_stage(
        stage("model.io"), tmp_path / "i", inputs={"model": seer["reference"]}, params=params
    )["io"]
    inputs = {**seer, "io": declared, "data": tmp_path / "data"}
    made = run_stage(stage("onnx.embed_io"), tmp_path / "e", inputs=inputs)
    assert float(str(made.figures["max_levels"])) <= levels + 1e-3
    session = onnxruntime.InferenceSession(made["model"] / "model.onnx")
    assert [(i.name, i.type) for i in session.get_inputs()] == [("picture", "tensor(uint8)")]
    original = onnxruntime.InferenceSession(seer["model"] / "model.onnx")
    raw = RawIo(declared)
    for one in data:
        pixels = np.asarray(Image.open(io.BytesIO(one)))[None]
        scores, classes, labels = session.run(["scores", "classes", "labels"], {"picture": pixels})
        arrays = raw.arrays([{"image": one}])
        (wanted,) = raw.answers({"output": original.run(None, arrays)[0]}, arrays)
        assert labels[0].tolist() == [c["label"] for c in wanted["classes"]]
        assert [answer["labels"][i] for i in classes[0]] == labels[0].tolist()
        np.testing.assert_allclose(scores[0], [c["score"] for c in wanted["classes"]], atol=2e-3)


def test_several_labels_have_scores_by_sigmoid(tmp_path: Path, seer: dict[str, Path]) -> None:
    _, made = _embedded(tmp_path, seer, {"picture": USUAL, "answer": {"kind": "labels"}})
    session = onnxruntime.InferenceSession(made["model"] / "model.onnx")
    (scores,) = session.run(None, {"picture": np.zeros((2, 90, 80, 3), np.uint8)})
    original = onnxruntime.InferenceSession(seer["model"] / "model.onnx")
    black = (np.zeros((2, 3, 64, 64)) - np.array(USUAL["mean"]).reshape(3, 1, 1)) / np.array(
        USUAL["std"]
    ).reshape(3, 1, 1)
    (logits,) = original.run(None, {"x": black.astype(np.float32)})
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_of_texts_only_the_answer_is_embedded(tmp_path: Path) -> None:
    example = {"example": {"input_ids": {"shape": [2, 6], "dtype": "int64", "low": 1, "high": 60}}}
    made = _made(tmp_path / "r", "Reader", example)
    tokenizer(tmp_path / "tokenizer.json")
    inputs = {"model": made["reference"], "tokenizer": tmp_path / "tokenizer.json"}
    params = {"answer": {"labels": ["no", "yes"]}, "text": {"max_length": 6}}
    declared = run_stage(stage("model.io"), tmp_path / "i", inputs=inputs, params=params)["io"]
    done = run_stage(stage("onnx.embed_io"), tmp_path / "e", inputs={**made, "io": declared})
    assert float(str(done.figures["max_score_difference"])) < 1e-6
    session = onnxruntime.InferenceSession(done["model"] / "model.onnx")
    assert [one.name for one in session.get_inputs()] == ["input_ids"]
    assert [one.name for one in session.get_outputs()] == ["scores", "classes", "labels"]


def test_a_larger_difference_than_allowed_is_refused(tmp_path: Path, seer: dict[str, Path]) -> None:
    with pytest.raises(GateError, match=r"a pixel is .* levels of 255 off Pillow's, above 0.1"):
        _embedded(tmp_path, seer, {"picture": USUAL}, max_levels=0.1)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"picture": {**USUAL, "interpolation": "lanczos"}}, "ONNX has no resizing by lanczos"),
        ({"picture": {**USUAL, "crop": 80}}, "a crop of 80x80 may be larger than the picture"),
        ({"picture": {"crop": 64}}, "a crop of 64x64 may be larger"),
    ],
)
def test_what_no_operator_does_is_refused(
    tmp_path: Path, seer: dict[str, Path], params: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        _embedded(tmp_path, seer, params)
