"""Raw input by the Open Inference Protocol v2: tensors of BYTES, in JSON and as binary data."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.serve import models
from tests.serve.raw_inputs import PICTURES, ROWS, declared, encoded
from tests.serve.server import Server, serving

GREEN, RED = (encoded(Image.new("RGB", (20, 30), colour), "PNG") for colour in ((0, 200, 0), (200, 0, 0)))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("colours")
    io = declared(folder / "io", **PICTURES)
    with serving(models.colours(folder / "model"), "--io", io, "--name", "c", folder=folder) as server:
        yield server


def _infer(server: Server, tensors: list[Any], binary: bytes = b"", **more: Any) -> Any:
    head = json.dumps({"inputs": tensors, **more}).encode()
    headers = {"inference-header-content-length": str(len(head))} if binary else {}
    return server.ask("POST", f"/v2/models/{server.name}/infer", raw=head + binary, headers=headers)


def _joined(*elements: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "little") + one for one in elements)


def test_pictures_in_base64_and_in_binary_data_are_answered_alike(colours: Server) -> None:
    coded = [base64.b64encode(one).decode() for one in (GREEN, RED)]
    in_json = _infer(colours, [{"name": "image", "datatype": "BYTES", "shape": [2], "data": coded}], id="7")
    assert in_json.json["id"] == "7"
    (tensor,) = in_json.json["outputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("answer", "BYTES", [2])
    answers = [json.loads(text) for text in tensor["data"]]
    assert [one["prediction"] for one in answers] == ["<green>", "red"]
    one = colours.ask("POST", "/predict", raw=GREEN, headers={"content-type": "image/png"}).json
    assert answers[0] == one
    raw = _joined(GREEN, RED)
    described = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [2, 1],
        "parameters": {"binary_data_size": len(raw)},
    }
    in_bytes = _infer(colours, [described], raw, parameters={"binary_data_output": True})
    length = int(in_bytes.headers["inference-header-content-length"])
    head, data = json.loads(in_bytes.body[:length]), in_bytes.body[length:]
    assert head["outputs"][0]["parameters"] == {"binary_data_size": len(data)}
    assert data == _joined(*(text.encode() for text in tensor["data"]))


def test_tensors_are_still_tensors_and_the_metadata_names_raw_input(colours: Server) -> None:
    pixels = {"name": "x", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
    assert _infer(colours, [pixels]).json["outputs"][0]["name"] == "shares"
    metadata = colours.ask("GET", "/v2/models/c").json
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert metadata["parameters"]["raw_inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


PICTURE: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["QUJD"]}


@pytest.mark.parametrize(
    ("tensors", "binary", "said"),
    [
        ([PICTURE], b"", "none of JPEG, PNG, WEBP"),
        ([{**PICTURE, "data": ["%"]}], b"", "not base64"),
        ([{**PICTURE, "data": [3]}], b"", "as text in base64"),
        ([{**PICTURE, "name": "text"}], b"", "tensors of BYTES named 'image', once each"),
        ([PICTURE, PICTURE], b"", "once each"),
        ([{**PICTURE, "shape": [2]}], b"", r"'image' has 1 elements; the shape is [1]"),
        ([{**PICTURE, "shape": [0], "data": []}], b"", "the batch is empty"),
        ([{**PICTURE, "parameters": {"binary_data_size": 99}}], b"abc", "binary_data_size doesn't match"),
        ([{**PICTURE, "parameters": {"binary_data_size": 3}}], b"abc", "longer than its tensor"),
        (
            [{**PICTURE, "parameters": {"binary_data_size": 5}}],
            b"\x01\0\0\0a" + b"b",
            "6 bytes of binary data, but 5",
        ),
    ],
)
def test_what_is_no_raw_input_is_one_sentence(
    colours: Server, tensors: Any, binary: bytes, said: str
) -> None:
    answer = _infer(colours, tensors, binary)
    assert answer.status == 400
    assert said in answer.json["error"]


def test_rows_are_json_in_an_element(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rows")
    io = declared(folder / "io", **ROWS)
    rows = [{"size": 2.5, "kind": 7, "heavy": True, "other": 4}, {"size": 1, "kind": "it's", "other": 4}]
    with serving(models.scorer(folder / "model"), "--io", io, "--server", "flask", folder=folder) as server:
        tensor = {"name": "row", "datatype": "BYTES", "shape": [2], "data": [json.dumps(row) for row in rows]}
        (answers,) = _infer(server, [tensor]).json["outputs"]
        assert [json.loads(text) for text in answers["data"]] == [{"prediction": 6.5}, {"prediction": 0.0}]
        refused = _infer(server, [{**tensor, "shape": [1], "data": ["{"]}])
        assert (refused.status, refused.json["error"]) == (400, "an element of 'row' is no JSON")
