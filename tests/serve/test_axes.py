"""Serving models whose samples are on another axis than the first, or that have none."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from deploy_runner.testing import run_stage
from tests.axes import exported, prepared
from tests.bundles import stage
from tests.serve.packed import loaded_code
from tests.serve.server import Server, ask, client, serving


def session(model: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    opened = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in opened.get_outputs()]
    return lambda arrays: dict(zip(names, opened.run(names, dict(arrays)), strict=True))


def all_at_once(server: Server, requests: list[dict[str, Any]], rounds: int = 10) -> list[dict[str, Any]]:
    """Send each request so many times by a client of its own, all at once; return the last outputs."""
    start = threading.Barrier(len(requests))

    def send(arrays: dict[str, Any]) -> dict[str, Any]:
        body = {"inputs": {name: array.tolist() for name, array in arrays.items()}}
        with client(server.url) as connection:
            start.wait()
            answer = [ask(connection, "POST", "/predict", body) for _ in range(rounds)][-1]
        assert answer.status == 200, answer.body
        return {name: np.asarray(values, np.float32) for name, values in answer.json["outputs"].items()}

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


def assert_answered(
    server: Server, requests: list[dict[str, Any]], run: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> int:
    """Compare each answer with what the model gives for that request alone; return how often it was run."""
    for arrays, outputs in zip(requests, all_at_once(server, requests), strict=True):
        for name, expected in run(arrays).items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-5)
    return int(server.figures()["serve_batch_samples_count"])


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_requests_are_joined_along_the_labelled_axis(tmp_path: Path) -> None:
    """A time-first LSTM from its container: samples on axis 1 of both inputs and of both outputs."""
    bundle = prepared("speech", tmp_path)
    model = exported(bundle, tmp_path)
    context = run_stage(
        stage("package.container"), tmp_path / "c", inputs={"model": model, "reference": bundle}
    )["context"]
    requests = [
        {"frames": normal(i, 5, 1 + i % 2, 6), "state": normal(-i % 99, 2, 1 + i % 2, 8)} for i in range(16)
    ]
    requests[-1] = {"frames": normal(0, 9, 1, 6), "state": normal(1, 2, 1, 8)}
    with serving(context, folder=tmp_path) as server:
        assert assert_answered(server, requests, session(model)) < 160
        samples = [{"frames": normal(i, 4, 6).tolist(), "state": normal(i, 2, 8).tolist()} for i in (1, 2)]
        answer = server.predict({"instances": samples})
    assert answer.status == 200, answer.body
    together = {
        "frames": np.stack([normal(i, 4, 6) for i in (1, 2)], 1),
        "state": np.stack([normal(i, 2, 8) for i in (1, 2)], 1),
    }
    np.testing.assert_allclose(
        next(iter(answer.json["outputs"].values())),
        next(iter(session(model)(together).values())), rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("format_", ["onnx", pytest.param("torchscript", marks=pytest.mark.slow)])
def test_an_input_that_all_samples_share_is_joined_with_none(tmp_path: Path, format_: str) -> None:
    """Requests with the same mask are run together; one with another mask, or another length, is not."""
    bundle = prepared("reader", tmp_path)
    model = exported(bundle, tmp_path)
    traced = run_stage(stage("torch.trace"), tmp_path / "t", inputs={"model": bundle})["model"]
    masks = [np.zeros((5, 5), np.float32), np.triu(np.full((5, 5), -1e9, np.float32), 1)]
    tokens = np.random.default_rng(0).integers(0, 20, (5, 16, 1))
    requests = [{"tokens": tokens[:, i], "mask": masks[i % 2]} for i in range(16)]
    options = {"onnx": (model,), "torchscript": (traced, "--reference", bundle, "--trust")}[format_]
    with serving(*options, folder=tmp_path) as server:
        assert server.wait_for("model")["batching"] is True
        assert assert_answered(server, requests, session(model)) < 160


def test_a_single_number_is_an_input(tmp_path: Path) -> None:
    bundle = prepared("sampler", tmp_path)
    model = exported(bundle, tmp_path)
    requests = [{"x": normal(i, 1, 4), "temperature": np.array(1 + i % 2, np.float32)} for i in range(8)]
    with serving(model, folder=tmp_path) as server:
        assert_answered(server, requests, session(model))
        tensors = [
            {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
            {"name": "temperature", "shape": [], "datatype": "FP32", "data": [0.5]},
        ]
        answer = server.ask("POST", "/v2/models/model/infer", {"inputs": tensors})
        shared = server.predict({"instances": [{"x": [1, 2, 3, 4], "temperature": 0.5}] * 2})
        mixed = server.predict({"instances": [{"x": [1, 2, 3, 4], "temperature": t} for t in (1, 2)]})
    expected = session(model)(
        {"x": np.array([[1, 2, 3, 4]], np.float32), "temperature": np.array(0.5, np.float32)}
    )
    np.testing.assert_allclose(answer.json["outputs"][0]["data"], expected["output"][0], rtol=1e-5)
    np.testing.assert_allclose(shared.json["outputs"]["output"], np.repeat(expected["output"], 2, 0), 1e-5)
    assert mixed.status == 422
    assert mixed.problems == ["input 'temperature' takes float32 of shape []; the shape [2] was given"]


@pytest.mark.slow
def test_a_model_without_a_batch_is_served_one_request_at_a_time(tmp_path: Path) -> None:
    """What merely stands first, here the time of one series, is no number of samples."""
    bundle = prepared("pooled", tmp_path)
    described = json.loads((bundle / "bundle.json").read_text())
    assert described["inputs"][0]["batch"] is None
    model = exported(bundle, tmp_path)
    requests = [{"x": normal(i, 3 + i, 4)} for i in range(8)]
    with serving(model, "--reference", bundle, "--max-samples", 4, folder=tmp_path) as server:
        assert server.wait_for("model")["why_alone"] == "the model has no dynamic batch axis"
        assert assert_answered(server, requests, session(model)) == 80


def steps(folder: Path) -> Path:
    """Write a model of `x` (float32 [time, items, 2]), doubled and summed over time to [2, items]."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axes"], ["sums"], keepdims=0),
            helper.make_node("Transpose", ["sums"], ["y"], perm=[1, 0]),
        ],
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, "n_samples", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, "n_samples"])],
        [onnx.numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )
    folder.mkdir()
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, folder / "model.onnx")
    return folder


SAMPLES = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
SUMS = SAMPLES.sum(1)
CSV = "".join(",".join(map(str, sample.ravel())) + "\n" for sample in SAMPLES)


def test_lists_and_lines_have_their_samples_first(tmp_path: Path) -> None:
    """Arrays by name have the model's own shape."""
    with serving(steps(tmp_path / "m"), folder=tmp_path / "s") as server:
        listed = server.predict(SAMPLES.tolist())
        instances = server.predict({"instances": SAMPLES.reshape(4, 6).tolist()})
        named = server.predict({"inputs": {"x": SAMPLES.swapaxes(0, 1).tolist()}})
        single = server.predict({"inputs": {"x": SAMPLES[1].tolist()}})
        kind = {"content-type": "text/csv", "accept": "text/csv"}
        lines = server.predict(None, raw=CSV.encode(), headers=kind)
    for answer in (listed, instances, named):
        assert np.array_equal(answer.json["outputs"]["y"], SUMS.T), answer.body
    assert np.array_equal(single.json["outputs"]["y"], SUMS[1:2].T)
    assert np.array_equal(np.loadtxt(io.BytesIO(lines.body), delimiter=","), SUMS)


def test_a_package_for_sagemaker_reads_them_alike(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    run_stage(stage("package.sagemaker"), tmp_path / "r", inputs={"model": steps(tmp_path / "m")},
              outputs={"package": "model.tar.gz"})  # fmt: skip
    import tarfile

    with tarfile.open(tmp_path / "r" / "outputs" / "model.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    code = loaded_code(folder)

    def ask(body: str | bytes, kind: str, accept: str) -> bytes:
        return code.transform(body.encode() if isinstance(body, str) else body, kind, accept)[0]

    for value in (SAMPLES.tolist(), {"instances": SAMPLES.reshape(4, 6).tolist()},
                  {"inputs": {"x": SAMPLES.swapaxes(0, 1).tolist()}}):  # fmt: skip
        answer = json.loads(ask(json.dumps(value), "application/json", "application/json"))
        assert np.array_equal(answer["outputs"]["y"], SUMS.T)
    lines = ask(CSV, "text/csv", "text/csv")
    assert np.array_equal(np.loadtxt(io.BytesIO(lines), delimiter=","), SUMS)
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(SAMPLES.swapaxes(0, 1)))
    answer = json.loads(ask(buffer.getvalue(), "application/x-npy", "application/json"))
    assert np.array_equal(answer["outputs"]["y"], SUMS.T)
