"""/predict and /invocations in every format, against onnxruntime itself; and every refusal's sentence."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.conftest import DIGITS
from tests.serve.models import Digits
from tests.serve.server import Server

NPY, NPZ, CSV = "application/x-npy", "application/x-npz", "text/csv"


@pytest.fixture(scope="session")
def images() -> np.ndarray[Any, Any]:
    with np.load(DIGITS / "heldout.npz") as held:
        images: np.ndarray[Any, Any] = held["x"][:3].astype(np.float32)
    return images


@pytest.fixture(scope="session")
def expected(digits: Digits, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(digits.onnx / "model.onnx")
    found: np.ndarray[Any, Any] = session.run(["output"], {"image": images})[0]
    return found


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("route", ["/predict", "/invocations"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda x: {"inputs": {"image": x.tolist()}}, id="by name"),
        pytest.param(lambda x: {"inputs": x.tolist()}, id="the only input"),
        pytest.param(lambda x: {"inputs": x.reshape(3, 64).tolist()}, id="flat rows"),
        pytest.param(lambda x: {"instances": x.tolist()}, id="instances"),
        pytest.param(lambda x: {"instances": [{"image": i} for i in x.tolist()]}, id="named instances"),
        pytest.param(lambda x: x.tolist(), id="a bare list"),
    ],
)
def test_json_in_every_form_gives_what_onnxruntime_gives(
    server: Server, images: Any, expected: Any, shape: Any, route: str
) -> None:
    answer = server.ask("POST", route, shape(images))
    assert answer.status == 200, answer.body
    np.testing.assert_allclose(answer.json["outputs"]["output"], expected, rtol=1e-5, atol=1e-5)


def test_one_sample_needs_no_batch_axis(server: Server, images: Any, expected: Any) -> None:
    answer = server.predict({"inputs": images[0].tolist()})
    np.testing.assert_allclose(answer.json["outputs"]["output"], expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(NPY, npy, id="npy"),
        pytest.param(NPY, lambda x: npy(np.asfortranarray(x.astype(">f8"))), id="npy, Fortran, big-endian"),
        pytest.param(NPZ, lambda x: npz(image=x), id="npz"),
        pytest.param(CSV, lambda x: "\n".join(",".join(map(str, row)) for row in x.reshape(3, 64)).encode(), id="csv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("accept", [CSV, NPY, NPZ])
def test_csv_npy_and_npz_are_read_and_written(
    server: Server, images: Any, expected: Any, kind: str, body: Any, accept: str
) -> None:
    answer = server.ask(
        "POST", "/invocations", raw=body(images), headers={"Content-Type": kind, "Accept": accept}
    )
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].partition(";")[0] == accept
    read: dict[str, Callable[[], Any]] = {
        CSV: lambda: np.loadtxt(io.BytesIO(answer.body), delimiter=","),
        NPY: lambda: np.load(io.BytesIO(answer.body)),
        NPZ: lambda: np.load(io.BytesIO(answer.body))["output"],
    }
    np.testing.assert_allclose(read[accept](), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param({"inputs": [[[[1.0] * 8] * 8]] * 9}, "the batch has 9 samples, the limit is 8", id="too many samples"),
        pytest.param({"inputs": [[1.0] * 63]}, "input 'image' takes float32 of shape [batch, 1, 8, 8]; the shape [1, 63] was given", id="a shape"),
        pytest.param({"inputs": [["a"] * 64]}, "input 'image' takes float32 of shape [batch, 1, 8, 8]; texts were given", id="texts"),
        pytest.param({"inputs": [[None] * 64]}, "input 'image' takes float32 of shape [batch, 1, 8, 8]; nulls, objects or numbers too large were given", id="nulls"),
        pytest.param({"inputs": [[1.0], [1.0, 2.0]]}, "input 'image' takes float32 of shape [batch, 1, 8, 8]; its lists have different lengths", id="ragged"),
        pytest.param({"inputs": []}, "input 'image' takes float32 of shape [batch, 1, 8, 8]; the batch is empty", id="empty"),
        pytest.param({"inputs": [[1e300] * 64]}, "input 'image' takes float32 of shape [batch, 1, 8, 8]; a number is not finite, or too large for it", id="too large"),
        pytest.param({"inputs": {"picture": [[1.0] * 64]}}, "unknown input 'picture', the inputs are 'image'", id="a name"),
        pytest.param({"input": 1}, "the body is {\"inputs\": {NAME: values}} or {\"instances\": [sample, …]}: unknown key 'input'", id="a key"),
        pytest.param("text", 'the body is neither {"inputs": …}, {"instances": […]} nor a list', id="no object"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_is_a_422_that_says_why(server: Server, body: Any, said: str) -> None:
    answer = server.predict(body)
    assert (answer.status, answer.problems) == (422, [said])


@pytest.mark.parametrize(
    ("kind", "raw", "status", "said"),
    [
        pytest.param("application/json", b"{", 400, "the body is not JSON: ", id="broken JSON"),
        pytest.param("application/json", b"\xff", 400, "the body is not JSON: ", id="no UTF-8"),
        pytest.param("application/json", b'{"inputs": NaN}', 400, "the body is not JSON: ", id="NaN"),
        pytest.param(CSV, b"1,b", 400, "the body is not CSV of numbers: ", id="no CSV"),
        pytest.param(
            CSV, "\U000568d2".encode(), 400, "the body is not CSV of numbers: ", id="it ends numpy's reader"
        ),
        pytest.param(
            "application/json",
            b'{"inputs": {"image": [[[[true, 1.0]]]]}}',
            422,
            "a list has numbers, and true or false",
            id="both",
        ),
        pytest.param(NPY, b"\x93NUMPY", 400, "the body is not an .npy array: ", id="cut NPY"),
        pytest.param(NPZ, b"PK", 400, "the body is not an .npz: ", id="no NPZ"),
        pytest.param(
            "image/png", b"", 415, "the content type 'image/png' is not supported, use ", id="a picture"
        ),
    ],
)
def test_what_cannot_be_read_says_why(server: Server, kind: str, raw: bytes, status: int, said: str) -> None:
    answer = server.ask("POST", "/predict", raw=raw, headers={"Content-Type": kind})
    assert answer.status == status
    assert answer.problems[0].startswith(said)


def test_an_npy_of_objects_is_not_unpickled(server: Server) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    answer = server.ask("POST", "/predict", raw=buffer.getvalue(), headers={"Content-Type": NPY})
    assert answer.status == 400


def test_a_response_type_that_is_not_written_is_a_406(server: Server) -> None:
    answer = server.predict({"inputs": [[0.0] * 64]}, headers={"Accept": "image/png"})
    assert answer.status == 406
    assert answer.problems[0].startswith(
        "the response type 'image/png' is not supported, use application/json, "
    )


def test_an_npz_that_unpacks_to_more_than_the_limit_is_a_413(server: Server) -> None:
    bomb = npz(image=np.zeros((1000, 1, 8, 8), np.float32))
    assert len(bomb) < 4096
    assert server.ask("POST", "/predict", raw=bomb, headers={"Content-Type": NPZ}).status == 413


def test_a_body_over_the_limit_is_a_413(server: Server) -> None:
    assert server.ask("POST", "/predict", raw=b" " * (64 * 1024 + 1)).status == 413


@pytest.mark.parametrize("server", ["fastapi"], indirect=True)
def test_a_chunked_body_over_the_limit_is_a_413(server: Server) -> None:
    """waitress doesn't read what it refuses: its client may fail to send before it can read the 413."""
    answer = server.ask("POST", "/predict", raw=(b" " * 1024 for _ in range(65)))
    assert answer.status == 413


def test_a_chunked_body_within_the_limit_is_read(server: Server, expected: Any, images: Any) -> None:
    body = npy(images)
    chunks = (body[i : i + 100] for i in range(0, len(body), 100))
    answer = server.ask("POST", "/predict", raw=chunks, headers={"Content-Type": NPY})
    np.testing.assert_allclose(answer.json["outputs"]["output"], expected, rtol=1e-5, atol=1e-5)


def test_everything_that_is_wrong_with_two_inputs_is_said_at_once(scorer: Server) -> None:
    answer = scorer.predict({"inputs": {"ids": [[1.5, 2.0]], "weight": [[1.0, 1.0]]}})
    assert answer.status == 422
    assert [p["loc"] for p in answer.json["detail"]] == [
        ["body", "inputs", "ids"],
        ["body", "inputs", "weight"],
    ]
    assert answer.problems == [
        "input 'ids' takes int64 of shape [batch, 2]; floats were given",
        "unknown input 'weight', the inputs are 'ids', 'weights'",
    ]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        pytest.param({"ids": [[1, 2]]}, "the input 'weights' is missing, float32 of shape [batch, 2]", id="missing"),
        pytest.param({"ids": [[1, 2]], "weights": [[1.0, 2.0]] * 2}, "input 'weights' has batch 2, but 'ids' has 1", id="two batches"),
        pytest.param({"ids": [[2**63, 2**63]], "weights": [[1.0, 2.0]]}, "input 'ids' takes int64 of shape [batch, 2]; a number is outside -9223372036854775808 to 9223372036854775807", id="out of range"),
        pytest.param([[1, 2]], "the model has 2 inputs, which must be given by name: 'ids', 'weights'", id="no names"),
    ],
)  # fmt: skip
def test_two_inputs_have_to_agree(scorer: Server, inputs: Any, said: str) -> None:
    answer = scorer.predict({"inputs": inputs})
    assert (answer.status, answer.problems) == (422, [said])


def test_two_inputs_are_scored(scorer: Server) -> None:
    answer = scorer.predict(
        {"instances": [{"ids": [2, 3], "weights": [10, 1]}, {"ids": [0, 1], "weights": [5, 5]}]}
    )
    assert answer.json == {"outputs": {"score": [23.0, 5.0]}}


@pytest.mark.parametrize("path", ["/predict", "/invocations", "/v2/models/digits/infer"])
def test_get_where_only_post_is_taken_is_a_405(server: Server, path: str) -> None:
    assert server.ask("GET", path).status == 405


def test_a_path_that_is_not_there_is_a_404(server: Server) -> None:
    assert server.ask("GET", "/nothing").status == 404
