"""The Open Inference Protocol v2, OpenAPI, and the figures at /metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
from openapi_spec_validator import validate

from tests.serve.models import Digits
from tests.serve.server import Server, serving

ROW = [0.5] * 64
INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def expected(digits: Digits) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(digits.onnx / "model.onnx")
    batch = np.full((2, 1, 8, 8), 0.5, np.float32)
    found: np.ndarray[Any, Any] = session.run(["output"], {"image": batch})[0]
    return found


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [2, 1, 8, 8], "datatype": "FP32", "data": ROW * 2, **changes}


def test_the_server_and_the_model_are_described(server: Server) -> None:
    described = {"name": "deploy-runner", "version": "1", "extensions": ["binary_tensor_data"]}
    assert server.ask("GET", "/v2").json == described
    version = server.digest[:12]
    model = server.ask("GET", "/v2/models/digits").json
    assert model == server.ask("GET", f"/v2/models/digits/versions/{version}").json
    assert model == {
        "name": "digits", "versions": [version], "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
        "parameters": {"digest": server.digest, "batching": True},
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/ping", "/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"])
def test_a_healthy_server_says_so(server: Server, path: str) -> None:
    assert server.ask("GET", path).status == 200


def test_an_inference_is_answered_flat_with_its_id_and_by_version(server: Server, expected: Any) -> None:
    version = server.digest[:12]
    for path in (INFER, f"/v2/models/digits/versions/{version}/infer"):
        answer = server.ask("POST", path, {"id": "7", "inputs": [tensor()]}).json
        (output,) = answer.pop("outputs")
        assert answer == {"model_name": "digits", "model_version": version, "id": "7"}
        np.testing.assert_allclose(output.pop("data"), expected.ravel(), rtol=1e-5)
        assert output == {"name": "output", "datatype": "FP32", "shape": [2, 10]}


def test_nested_data_is_taken_too(server: Server, expected: Any) -> None:
    nested = np.full((2, 1, 8, 8), 0.5).tolist()
    answer = server.ask("POST", INFER, {"inputs": [tensor(data=nested)]}).json
    np.testing.assert_allclose(answer["outputs"][0]["data"], expected.ravel(), rtol=1e-5)


def test_binary_tensors_come_and_go_after_the_json(server: Server, expected: Any) -> None:
    raw = np.full((2, 1, 8, 8), 0.5, "<f4").tobytes()
    image = tensor(parameters={"binary_data_size": len(raw)})
    del image["data"]
    wanted = [{"name": "output", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [image], "outputs": wanted}).encode()
    sent = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = server.ask("POST", INFER, raw=head + raw, headers=sent)
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 80}
    np.testing.assert_allclose(np.frombuffer(answer.body[length:], "<f4"), expected.ravel(), rtol=1e-5)


TAKES = "input 'image' takes float32 of shape [batch, 1, 8, 8]; "


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"datatype": "FP64"}, "input 'image' has the datatype FP32; 'FP64' was given", id="datatype"),
        pytest.param({"shape": [2, 64]}, TAKES + "the shape [2, 64] was given", id="shape"),
        pytest.param({"shape": [3, 1, 8, 8]}, "input 'image': 128 numbers were given for the shape [3, 1, 8, 8]", id="too few numbers"),
        pytest.param({"shape": "2"}, "input 'image': a list of sizes is required", id="no shape"),
        pytest.param({"name": "x"}, "unknown input 'x', the model has 'image'", id="name"),
        pytest.param({"data": ["a"]}, TAKES.replace("[batch, 1, 8, 8]", "[-1, 1, 8, 8]") + "texts were given", id="texts"),
        pytest.param({"parameters": {"binary_data_size": 4}}, "input 'image' of shape [2, 1, 8, 8] has 512 bytes; 0 were given", id="binary size"),
    ],
)  # fmt: skip
def test_a_bad_inference_is_a_400_with_one_sentence(server: Server, change: Any, said: str) -> None:
    answer = server.ask("POST", INFER, {"inputs": [tensor(**change)]})
    assert (answer.status, answer.json) == (400, {"error": said})


@pytest.mark.parametrize("method_path", [("GET", ""), ("GET", "/ready"), ("POST", "/infer")])
@pytest.mark.parametrize("model", ["other", "digits/versions/1"])
def test_another_model_or_version_is_a_404(server: Server, model: str, method_path: tuple[str, str]) -> None:
    method, path = method_path
    answer = server.ask(method, f"/v2/models/{model}{path}", {} if method == "POST" else None)
    assert answer.status == 404
    assert answer.json["error"].startswith("unknown ")


@pytest.mark.parametrize(
    ("method", "path", "raw", "status", "said"),
    [
        pytest.param("POST", INFER, b" " * 65_537, 413, "the body is larger than 65536 bytes", id="too large"),
        pytest.param("GET", INFER, None, 405, f"{INFER} takes POST", id="another method"),
        pytest.param("POST", INFER, b"{", 400, "the body is not JSON: ", id="no JSON"),
        pytest.param("GET", "/v2/nothing", None, 404, "there is no /v2/nothing", id="another path"),
        pytest.param("DELETE", "/v2/models/digits", None, 405, "/v2/models/digits takes ", id="another method there"),
    ],
)  # fmt: skip
def test_every_refusal_of_the_protocol_is_an_error(
    server: Server, method: str, path: str, raw: Any, status: int, said: str
) -> None:
    answer = server.ask(method, path, raw=raw)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert answer.json["error"].startswith(said)
    assert ("allow" in answer.headers) == (status == 405)


def test_other_paths_and_methods_are_refused_in_the_words_of_predict(server: Server) -> None:
    assert server.ask("GET", "/nothing").problems == ["there is no /nothing"]
    assert server.ask("GET", "/predict").problems[0].startswith("/predict takes ")
    assert server.ask("POST", "/predict", raw=b" " * 65_537).problems == [
        "the body is larger than 65536 bytes"
    ]


def test_a_model_says_by_its_name_that_it_is_ready(server: Server) -> None:
    assert server.ask("GET", "/v2/models/digits/ready").json == {"name": "digits", "ready": True}


def test_openapi_is_valid_and_has_the_models_shapes(server: Server) -> None:
    described = server.ask("GET", "/openapi.json").json
    validate(described)
    body = described["paths"]["/predict"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    image = np.zeros((2, 1, 8, 8))
    jsonschema.validate({"inputs": {"image": image.tolist()}}, schema)
    refused: list[tuple[Any, str]] = [
        ({"inputs": {"image": image[:, 0].tolist()}}, "0.0 is not of type 'array'"),
        ({"inputs": {}}, "'image' is a required property"),
        ([[1.0]], "1.0 is not of type 'array'"),
    ]
    for wrong, said in refused:
        with pytest.raises(jsonschema.ValidationError, match=said):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
def test_metrics_count_requests_by_route_and_status(digits: Digits, tmp_path: Path, kind: str) -> None:
    with serving(digits.onnx, "--server", kind, "--name", "digits", folder=tmp_path) as server:
        for body in ([ROW], [ROW, ROW], [[1]]):
            server.predict(body)
        server.ask("POST", INFER, {})
        figures = server.figures()
        assert server.ask("GET", "/metrics").headers["content-type"].startswith("text/plain; version=")
    assert figures["serve_requests_total /predict 200"] == 2
    assert figures["serve_requests_total /predict 422"] == 1
    assert figures["serve_requests_total /v2/infer 400"] == 1
    assert figures["serve_batch_samples_sum"] == 3
    assert figures["serve_queue_samples"] == 0
    (model,) = (name for name in figures if name.startswith("serve_model_info "))
    assert set(model.split()[1:]) == {"digits", server.digest, "onnx"}
