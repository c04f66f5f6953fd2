"""Raw input becomes the tensors that the training's code makes of it, to the bit; what isn't one is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy_runner.server.raw.answering import Answers
from deploy_runner.server.raw.picture import Picture
from deploy_runner.server.raw.problems import BadInput
from deploy_runner.server.raw.rawio import RawIo
from deploy_runner.server.raw.requests import Kinds, of_body
from deploy_runner.server.raw.row import Row, rows
from tests.serve.raw_inputs import MEAN, STD, encoded, picture, picture_spec

NOWHERE = Path()
FORMS = [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"),
         ("PNG", "1"), ("WEBP", "RGB")]  # fmt: skip


@pytest.mark.parametrize(("form", "mode"), FORMS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(72, 64), (40, 64), ([96, 64], None)])
def test_pictures_are_torchvisions_to_the_bit(
    form: str, mode: str, interpolation: str, resize: Any, crop: int | None
) -> None:
    from torchvision import transforms

    steps = [transforms.Resize(resize, transforms.InterpolationMode(interpolation))]
    steps += [transforms.CenterCrop(crop)] if crop else []
    theirs = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    size = {"shortest": resize} if isinstance(resize, int) else {"size": resize}
    spec = picture_spec(resize=size, crop=crop and [crop, crop], interpolation=interpolation)
    ours = Picture(spec, NOWHERE)
    for width, height in ((200, 151), (1, 1), (3, 300), (72, 72), (111, 333)):
        data = encoded(picture(width, height, mode), form)
        wanted = theirs(Image.open(io.BytesIO(data)).convert("RGB")).numpy()
        np.testing.assert_array_equal(ours.arrays([data, data])["x"], [wanted, wanted])


def test_a_picture_is_turned_by_exif_and_laid_on_a_background() -> None:
    spec = picture_spec(resize=None, crop=None, mean=None, std=None, layout="HWC", dtype="uint8", scale=None)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, turned = picture(40, 20), picture(40, 20).transpose(Image.Transpose.ROTATE_90)
    data = encoded(turned, "PNG", exif=exif)
    np.testing.assert_array_equal(Picture(spec, NOWHERE).arrays([data])["x"][0], np.asarray(upright))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    for background, colour in (([0, 0, 255], [0, 0, 255]), (None, [255, 0, 0])):
        read = Picture({**spec, "background": background}, NOWHERE).arrays([encoded(clear, "PNG")])["x"]
        assert read[0, 0, 0].tolist() == colour


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bomb(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(b"\0" * 1000))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "none of JPEG, PNG, WEBP"),
        (b"GIF89a" + b"\0" * 50, "none of JPEG, PNG, WEBP"),
        (encoded(picture(200, 150), "JPEG")[:4000], "damaged or cut off"),
        (encoded(picture(200, 150), "PNG")[:4000], "damaged or cut off"),
        (encoded(picture(200, 150), "WEBP")[:1000], "or is damaged"),
        (_bomb(5000), r"1000000 pixels at most, it has 5000x5000"),
        (_bomb(60000), r"1000000 pixels at most"),
        (encoded(picture(1, 40000), "PNG"), r"would become 72x2880000"),
        (encoded(Image.fromarray(np.arange(256, dtype="uint16").reshape(16, 16)), "PNG"), "8 bits a channel"),
        ("text", "as bytes, in JSON as base64"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(data: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Picture(picture_spec(), NOWHERE).arrays([data])


COLUMNS: dict[str, Any] = {"vocabulary": None, "unknown": None, "missing": None, "mean": None, "std": None}
TABLE: dict[str, Any] = {
    "columns": [
        {**COLUMNS, "name": "age", "kind": "number", "mean": 40.0, "std": 10.0},
        {**COLUMNS, "name": "smokes", "kind": "flag", "missing": False},
        {**COLUMNS, "name": "city", "kind": "category", "vocabulary": ["Bonn", "Ulm"], "unknown": 2},
    ],
    "tensors": {
        "x": {"dtype": "float32", "columns": ["age", "smokes"], "shape": "columns"},
        "place": {"dtype": "int64", "columns": ["city"], "shape": "each"},
    },
}


def test_a_row_becomes_the_tensors_of_its_columns() -> None:
    read = Row(TABLE, NOWHERE).arrays(
        [{"age": 50, "city": "Ulm"}, {"age": "30", "smokes": "yes", "city": "Rom"}]
    )
    assert read["x"].tolist() == [[1.0, 0.0], [-1.0, 1.0]]
    assert read["place"].tolist() == [1, 2]
    assert read["place"].dtype == np.int64
    assert rows("city,age\nUlm,50\n", TABLE) == [{"city": "Ulm", "age": "50"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"city": "Ulm"}, "age: it is missing"),
        ({"age": "old", "city": "Ulm"}, "age: 'old' is not a finite number"),
        ({"age": True, "city": "Ulm"}, "age: 'True' is not a finite number"),
        ({"age": float("inf"), "city": "Ulm"}, "age: 'inf' is not a finite number"),
        ({"age": 1, "smokes": "maybe", "city": 3}, "smokes: 'maybe' is neither true nor false"),
        ({"age": 1, "City": "Ulm"}, "unknown column 'City'; city: it is missing"),
        ([1, 2], "a row is an object"),
    ],
)
def test_a_row_says_everything_that_is_wrong_with_it(row: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Row(TABLE, NOWHERE).arrays([row])


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [("uint8", 300, "from 0 to 255"), ("int64", 2**60, "whole numbers from"), ("int64", 0.5, "whole numbers"),
     ("float32", 1e300, "too large for float32")],
)  # fmt: skip
def test_a_number_that_its_type_cant_hold_is_refused(dtype: str, value: float, said: str) -> None:
    plain = {
        "columns": [{**COLUMNS, "name": "n", "kind": "number"}],
        "tensors": {"n": {"dtype": dtype, "columns": ["n"], "shape": "each"}},
    }
    with pytest.raises(BadInput, match=f"^n: .*{said}"):
        Row(plain, NOWHERE).arrays([{"n": value}])


def test_an_unknown_category_is_refused_where_no_number_is_declared_for_it() -> None:
    strict = {**TABLE, "columns": [*TABLE["columns"][:2], {**TABLE["columns"][2], "unknown": None}]}
    with pytest.raises(BadInput, match="city: 'Rom' is none of its categories 'Bonn', 'Ulm'"):
        Row(strict, NOWHERE).arrays([{"age": 1, "city": "Rom"}])


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "age,age\n1,2\n", "age,city\n1\n", "age,city\n"])
def test_a_csv_without_its_header_or_rows_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"first line|line 2 has 1 values|no rows"):
        rows(text, TABLE)


PNG = encoded(picture(8, 8), "PNG")
CODED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("fields", "kind", "body", "samples"),
    [
        (["image"], "image/png", PNG, [{"image": PNG}]),
        (["image"], "application/octet-stream", PNG, [{"image": PNG}]),
        (["image"], "application/json", f'{{"image": "{CODED}"}}', [{"image": PNG}]),
        (["image"], "application/json", f'{{"image": "data:image/png;base64,{CODED}"}}', [{"image": PNG}]),
        (["image"], "application/json", f'{{"instances": [{{"b64": "{CODED}"}}]}}', [{"image": PNG}]),
        (["image"], "application/json", f'{{"inputs": "{CODED}"}}', [{"image": PNG}]),
        (["text"], "text/plain; charset=utf-8", "größer", [{"text": "größer"}]),
        (["text"], "application/json", '{"inputs": ["a", "b"]}', [{"text": "a"}, {"text": "b"}]),
        (["text"], "application/json", '{"text": "a", "text_pair": "b"}', [{"text": ["a", "b"]}]),
        (["text"], "application/json", '{"data": "a"}', [{"text": "a"}]),
        (["row"], "application/json", '[{"age": 1}]', [{"row": {"age": 1}}]),
        (["row"], "application/json", '{"row": {"age": 1}}', [{"row": {"age": 1}}]),
        (["image", "text"], "application/json", f'{{"image": ["{CODED}"], "text": ["a"]}}',
         [{"image": PNG, "text": "a"}]),
        (["data"], "application/json", '{"data": {"any": [1]}}', [{"data": {"any": [1]}}]),
    ],
)  # fmt: skip
def test_the_forms_of_a_request(fields: list[str], kind: str, body: Any, samples: Any) -> None:
    given = of_body(body if isinstance(body, bytes) else body.encode(), kind, Kinds(fields, ["age"]))
    assert given is not None
    assert given.samples == samples


@pytest.mark.parametrize(
    "body", ['{"inputs": {"x": [[1.0]]}}', "[[1.0, 2.0]]", '{"instances": [[1.0]]}', '{"data": [1]}']
)
def test_tensors_are_no_raw_input(body: str) -> None:
    assert of_body(body.encode(), "application/json", Kinds(["image"])) is None


def test_answers_have_labels_and_scores() -> None:
    outputs = {"logits": np.array([[0.0, 2.0, 1.0]], np.float32)}
    spec = {"kind": "classes", "output": "logits", "labels": ["a", "b", "c"], "top": 2, "threshold": 0.5,
            "activation": "softmax"}  # fmt: skip
    (answer,) = Answers(spec)(outputs, {})
    assert answer["prediction"] == "b"
    assert [one["label"] for one in answer["classes"]] == ["b", "c"]
    assert answer["score"] == pytest.approx(np.exp(2) / (1 + np.exp(2) + np.e))
    (single,) = Answers({**spec, "labels": ["no", "yes"]})({"logits": np.array([[3.0]], np.float32)}, {})
    assert single["prediction"] == "yes"
    (several,) = Answers({**spec, "kind": "labels", "activation": "sigmoid"})(outputs, {})
    assert several["prediction"] == ["b", "c", "a"]
    (number,) = Answers({"kind": "number", "output": "logits"})({"logits": np.array([[1.5]])}, {})
    assert number == {"prediction": 1.5}


def test_embeddings_are_pooled_over_what_the_mask_shows() -> None:
    tokens = np.array([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]], np.float32)
    spec = {"kind": "embedding", "output": "e", "mask": "mask", "normalize": False}
    for pooling, wanted in (
        ("mean", [1.5, 2.0]),
        ("max", [3.0, 4.0]),
        ("cls", [3.0, 0.0]),
        ("last", [0.0, 4.0]),
    ):
        (found,) = Answers({**spec, "pooling": pooling})({"e": tokens}, {"mask": np.array([[1, 1, 0]])})
        assert found["embedding"] == wanted


@pytest.mark.parametrize(
    ("changed", "size", "box"),
    [
        ({"resize": {"shortest": 72}, "crop": [64, 64]}, (144, 288), [(8 + 4) * 2, (16 + 40) * 2, 48, 128]),
        ({"resize": {"size": [32, 64]}, "crop": None}, (128, 96), [16, 48, 40, 72]),
        ({"resize": None, "crop": None}, (30, 40), [8, 16, 20, 24]),
    ],
)
def test_boxes_are_in_pixels_of_the_picture_that_was_sent(
    changed: dict[str, Any], size: tuple[int, int], box: list[float]
) -> None:
    answer = {
        "kind": "boxes",
        "boxes": "b",
        "classes": "c",
        "scores": "s",
        "threshold": 0.5,
        "labels": ["cat"],
    }
    raw = RawIo(NOWHERE, {"picture": picture_spec(**changed), "answer": answer})
    given = raw.arrays([{"image": encoded(picture(*size), "PNG")}])
    found = {
        "b": np.array([[[8.0, 16, 20, 24], [-9, 0, 999, 9]]]),
        "c": np.zeros((1, 2)),
        "s": np.ones((1, 2)),
    }
    first, second = raw.answers(found, given)[0]["objects"]
    assert first == {"label": "cat", "score": 1.0, "box": pytest.approx(box)}
    assert second["box"][0] >= 0
    assert second["box"][2] == size[0]
