"""verify.accuracy and verify.answers from raw data: folders by class, CSV, lines of JSON, through the whole path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy_runner.sdk import GateError, StageError
from deploy_runner.server.raw.rawio import RawIo
from deploy_runner.stages.verify import raw_data
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import DIGITS
from tests.serve.models import Digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COUNT = 60


@pytest.fixture(scope="module")
def io(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits from files of pictures whose levels go from 0 to 16."""
    params = {"picture": {"scale": False, "std": [16]}, "answer": {"labels": NAMES}}
    return run_stage(stage("model.io"), tmp_path_factory.mktemp("io"), inputs={"model": digits.bundle}, params=params)["io"]  # fmt: skip


def _held() -> tuple[Any, Any]:
    with np.load(DIGITS / "heldout.npz") as held:
        return (held["x"][:COUNT, 0] * 16).astype(np.uint8), held["y"][:COUNT]


@pytest.fixture(scope="module")
def by_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out digits as PNG files in folders of their classes."""
    folder = tmp_path_factory.mktemp("by_class")
    for place, (levels, label) in enumerate(zip(*_held(), strict=True)):
        (folder / NAMES[label]).mkdir(exist_ok=True)
        Image.fromarray(levels).save(folder / NAMES[label] / f"{place:03}.png")
    return folder


def _accuracy(
    folder: Path, candidate: Path, data: Path, io: Path, reference: Path | None, **params: Any
) -> Any:
    inputs = {"candidate": candidate, "data": data, "io": io} | (
        {"reference": reference} if reference else {}
    )
    return run_stage(stage("verify.accuracy"), folder, inputs=inputs, params=params)


@pytest.mark.parametrize("kind", ["onnx", "int8", "torchscript"])
def test_accuracy_from_files_is_that_from_their_arrays(
    digits: Digits, io: Path, by_class: Path, tmp_path: Path, kind: str
) -> None:
    levels, labels = _held()
    np.savez(tmp_path / "data.npz", x=levels[:, None] / np.float32(16), y=labels)
    candidate = getattr(digits, kind)
    inputs = {"candidate": candidate, "data": tmp_path / "data.npz", "reference": digits.bundle}
    arrays = run_stage(stage("verify.accuracy"), tmp_path / "a", inputs=inputs)
    files = _accuracy(tmp_path / "f", candidate, by_class, io, digits.bundle)
    assert dict(files.figures) == dict(arrays.figures)
    assert float(str(files.figures["accuracy"])) > 90


def test_a_folder_may_say_its_labels_in_a_table(
    digits: Digits, io: Path, by_class: Path, tmp_path: Path
) -> None:
    """The form of Hugging Face's imagefolder, with numbers as labels."""
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["file_name,digit,writer"]
    for file in by_class.rglob("*.png"):
        (flat / file.name).write_bytes(file.read_bytes())
        lines.append(f"{file.name},{NAMES.index(file.parent.name)},7")
    (flat / "metadata.csv").write_text("\n".join(lines))
    found = _accuracy(tmp_path / "f", digits.onnx, flat, io, None, label="digit")
    assert found.figures == {**_accuracy(tmp_path / "g", digits.onnx, by_class, io, None).figures}
    (flat / "metadata.csv").write_text("file_name,digit\nnone.png,1\n")
    with pytest.raises(StageError, match=r"metadata.csv:2: file_name 'none.png' does not exist"):
        _accuracy(tmp_path / "h", digits.onnx, flat, io, None, label="digit")


def test_a_metric_gets_answers_and_labels(digits: Digits, io: Path, by_class: Path, tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(
        "def top3(answers, labels):\n"
        "    return sum(l in [c['label'] for c in a['classes'][:3]] for a, l in zip(answers, labels)) / len(labels)\n"
    )
    inputs = {"candidate": digits.int8, "data": by_class, "io": io}
    found = run_stage(
        stage("verify.accuracy"), tmp_path / "f", inputs=inputs, params={"metric": "metric.py:top3"}, project=tmp_path
    )  # fmt: skip
    assert float(str(found.figures["accuracy"])) > 98


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("eleven", r"eleven/x.png: the label 'eleven' is none of the model's: 'zero', 'one'"),
        (".", r"x.png has no label"),
    ],
)
def test_labels_that_the_model_doesnt_have_are_refused(
    digits: Digits, io: Path, tmp_path: Path, change: str, said: str
) -> None:
    (tmp_path / "d" / change).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d" / change / "x.png")
    with pytest.raises(StageError, match=said):
        _accuracy(tmp_path / "f", digits.onnx, tmp_path / "d", io, None)


def test_a_damaged_file_is_named(digits: Digits, io: Path, tmp_path: Path) -> None:
    (tmp_path / "d/zero").mkdir(parents=True)
    (tmp_path / "d/zero/x.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        StageError, match=r"zero/x.png: the picture is none of JPEG, PNG, WEBP, or is damaged"
    ):
        _accuracy(tmp_path / "f", digits.onnx, tmp_path / "d", io, None)
    with pytest.raises(StageError, match="a folder is raw input, which needs `io`"):
        run_stage(
            stage("verify.accuracy"),
            tmp_path / "g",
            inputs={"candidate": digits.onnx, "data": tmp_path / "d"},
        )


def test_answers_are_compared_with_the_originals(
    digits: Digits, io: Path, other: Path, by_class: Path, tmp_path: Path
) -> None:
    inputs = {"reference": digits.bundle, "io": io, "data": by_class}

    def run(name: str, candidate: Path, **params: Any) -> Any:
        return run_stage(
            stage("verify.answers"), tmp_path / name, inputs={**inputs, "candidate": candidate}, params=params
        )

    same = run("same", digits.onnx)
    assert (same.figures["samples"], same.figures["agreement"]) == (COUNT, 100)
    int8 = run("int8", digits.int8, min_agreement=95)
    assert 0 < float(str(int8.figures["max_score_difference"])) < 0.5
    with pytest.raises(GateError, match=r"a score is .* off the original's, above 0.0001"):
        run("strict", digits.int8, min_agreement=0, max_score_difference=1e-4)
    with pytest.raises(
        GateError, match=r"% of 60 answers agree .* first that doesn't is .*png: '\w+' for '\w+'"
    ):
        run("other", _biased(other, tmp_path / "biased"))


def _biased(model: Path, folder: Path) -> Path:
    """Make a model say nine much more often: a bias of 1 in the fixture changes no order."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(model / "model.onnx")
    bias = next(t for t in proto.graph.initializer if list(t.dims) == [10])
    array = numpy_helper.to_array(bias) + np.eye(10, dtype=np.float32)[9] * 8
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    folder.mkdir()
    onnx.save(proto, folder / "model.onnx")
    return folder


COLUMN = {"vocabulary": None, "unknown": None, "missing": None, "mean": None, "std": None, "kind": "number"}
ROWS: dict[str, Any] = {
    "row": {"columns": [{**COLUMN, "name": "age"}], "tensors": {"x": {"dtype": "float32", "columns": ["age"], "shape": "columns"}}},
    "answer": {"kind": "classes", "output": "y", "labels": ["no", "yes"], "top": 2, "activation": "softmax"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "samples"),
    [
        ("a.csv", "id,age,label\n1,40,yes\n", [({"row": {"age": "40"}}, "yes")]),
        ("a.tsv", "age\tlabel\n40\t1\n", [({"row": {"age": "40"}}, "1")]),
        ("a.jsonl", '{"age": 40, "label": 1}\n\n{"row": {"age": 3}, "label": "no"}\n',
         [({"row": {"age": 40}}, 1), ({"row": {"age": 3}}, "no")]),
    ],
)  # fmt: skip
def test_rows_are_read_with_their_labels(tmp_path: Path, name: str, text: str, samples: Any) -> None:
    (tmp_path / name).write_text(text)
    found = list(raw_data.samples(tmp_path / name, RawIo(tmp_path, ROWS), "label"))
    assert [(one.fields, one.label) for one in found] == samples
    assert raw_data.known("1", RawIo(tmp_path, ROWS), "here") == "yes"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "age,label\n40\n", "a.csv:2: the line has more or fewer values than the header"),
        ("a.csv", 'age,label\n"4', "a.csv:2"),
        ("a.jsonl", "{\n", "a.jsonl:1 is not JSON"),
        ("a.jsonl", "3\n", "a.jsonl:1 is no object"),
        ("a.jsonl", '{"label": 1}\n', "a.jsonl:1 is no sample of row"),
        ("a.xlsx", "", "a.xlsx is no data for the io"),
    ],
)
def test_what_is_no_data_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(StageError, match=said):
        list(raw_data.samples(tmp_path / name, RawIo(tmp_path, ROWS), "label"))


def test_texts_are_read_with_their_labels(tmp_path: Path) -> None:
    from tests.serve.raw_inputs import tokenizer

    tokenizer(tmp_path / "tokenizer.json")
    spec = {"ids": "i", "mask": None, "types": None, "dtype": "int64", "max_length": 8, "truncation": None,
            "truncation_side": "right", "padding": "longest", "pad_to": None, "padding_side": "right", "pad_id": 0,
            "pad_token": "[PAD]", "pad_type": 0, "special_tokens": True, "max_characters": 99, "pairs": False}  # fmt: skip
    io = RawIo(tmp_path, {"text": spec, "answer": ROWS["answer"]})
    (tmp_path / "a.csv").write_text('sentence,stars\n"good, really",2\n')
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "good", "id": 9, "stars": 1}))
    for name, text in (("a.csv", "good, really"), ("b.jsonl", "good")):
        (one,) = raw_data.samples(tmp_path / name, io, "stars")
        assert one.fields == {"text": text}
