"""/metrics and /openapi.json say what is served."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.serve.server import Server


@pytest.fixture
def description(server: Server) -> Any:
    return server.ask("GET", "/openapi.json").json


def test_the_description_is_valid_openapi(description: Any) -> None:
    OpenAPIV31SpecValidator(description).validate()


def test_the_description_names_every_route(description: Any) -> None:
    assert set(description["paths"]) == {
        "/predict", "/invocations", "/ping", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready",
        "/v2/models/digits", "/v2/models/digits/ready", "/v2/models/digits/infer",
    }  # fmt: skip


def test_the_description_has_the_models_real_shapes(description: Any, server: Server) -> None:
    post = description["paths"]["/predict"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    good = {"inputs": {"image": [[[[0.5] * 8] * 8]]}}
    jsonschema.Draft202012Validator(schema).validate(good)
    wrong: list[dict[str, Any]] = [
        {"inputs": {"image": [[[[0.5] * 7] * 8]]}},
        {"inputs": {"picture": []}},
        {"inputs": {"image": [[[["a"] * 8] * 8]]}},
    ]
    for bad in wrong:
        assert not jsonschema.Draft202012Validator(schema).is_valid(bad)
        assert server.predict(bad).status == 422
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(answer).validate(server.predict(good).json)
    refusal = post["responses"]["422"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(refusal).validate(server.predict(wrong[-1]).json)


def test_the_description_names_every_status(description: Any, server: Server) -> None:
    predict = description["paths"]["/predict"]["post"]["responses"]
    infer = description["paths"]["/v2/models/digits/infer"]["post"]["responses"]
    assert set(predict) == {
        "200", "400", "406", "408", "413", "415", "422", "429", "431", "500", "503", "504"
    }  # fmt: skip
    assert set(infer) == set(predict) - {"406", "422"}
    for path in ("/ping", "/v2/health/ready", "/v2/models/digits/ready"):
        assert set(description["paths"][path]["get"]["responses"]) == {"200", "408", "431", "503"}
    refused = infer["400"]["content"]["application/json"]["schema"]
    answer = server.ask("POST", "/v2/models/digits/infer", raw=b"{")
    jsonschema.Draft202012Validator(refused).validate(answer.json)


def test_a_description_of_two_inputs_is_valid_and_strict(scorer: Server) -> None:
    description = scorer.ask("GET", "/openapi.json").json
    OpenAPIV31SpecValidator(description).validate()
    schema = description["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    check = jsonschema.Draft202012Validator(schema)
    assert check.is_valid({"inputs": {"ids": [[1, 2]], "weights": [[0.5, 1]]}})
    assert not check.is_valid({"inputs": {"ids": [[1.5, 2]], "weights": [[0.5, 1]]}})
    assert not check.is_valid({"inputs": {"ids": [[1, 2]]}})


def test_the_figures_count_requests_batches_and_seconds(server: Server) -> None:
    before = server.figures()
    server.predict({"inputs": [[0.0] * 64] * 3})
    server.predict({"inputs": [[0.0] * 63]})
    after = server.figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("serve_requests_total /predict 200") == 1
    assert grown("serve_requests_total /predict 422") == 1
    assert grown("serve_request_seconds_count /predict") == 2
    assert grown("serve_batch_samples_count") == 1
    assert grown("serve_batch_samples_sum") == 3
    assert grown("serve_inference_seconds_count") == 1
    assert after["serve_queue_samples"] == 0
    assert after[f"serve_model_info {server.digest} onnx digits"] == 1
    assert after["serve_reloads_total swapped"] == 0
