"""The local inference container serves a package as SageMaker's own do."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_runner.testing import run_stage
from tests.aws import INFERENCE, package
from tests.bundles import stage

TOGETHER = """
def model_fn(model_dir):
    return 3

def transform_fn(model, body, content_type, accept):
    return f"{model} {type(body).__name__} {content_type}", "text/plain"
"""


@contextmanager
def container(archive: Path) -> Iterator[dict[str, str]]:
    """Start the container; yield the line that it prints: its address, or why it can't start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy_runner.local.container", str(archive)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    process.communicate(timeout=30)


def post(url: str, body: bytes, kind: str, accept: str = "*/*") -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": kind, "Accept": accept})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def archive(folder: Path, code: str, name: str = "code/inference.py") -> Path:
    path = folder / "model.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(code.encode())
        tar.addfile(entry, io.BytesIO(code.encode()))
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The address of a container with a linear model in ONNX, inputs and their right answers."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("package")
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 2], weights.tobytes(), raw=True)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx" / "model.onnx")
    made = run_stage(stage("package.sagemaker"), folder / "run", inputs={"model": folder / "onnx"})
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    with container(made["package"]) as said:
        yield said["url"], x, x @ weights


def test_ping_is_ok_once_the_model_is_loaded(digits: tuple[str, np.ndarray, np.ndarray]) -> None:
    with urllib.request.urlopen(f"{digits[0]}/ping") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-npy"])
@pytest.mark.parametrize("kind", ["application/json", "text/csv", "application/x-npy"])
def test_every_content_type_gives_the_same_answer(
    digits: tuple[str, np.ndarray, np.ndarray], kind: str, accept: str
) -> None:
    url, x, y = digits
    buffer = io.BytesIO()
    np.save(buffer, x)
    bodies = {
        "application/json": json.dumps({"inputs": {"x": x.tolist()}}).encode(),
        "text/csv": "\n".join(",".join(map(str, row)) for row in x.tolist()).encode(),
        "application/x-npy": buffer.getvalue(),
    }
    status, content_type, body = post(url, bodies[kind], kind, accept)
    assert (status, content_type) == (200, accept)
    read: dict[str, Callable[[], Any]] = {
        "application/json": lambda: np.asarray(json.loads(body)["outputs"]["y"]),
        "text/csv": lambda: np.loadtxt(io.BytesIO(body), delimiter=","),
        "application/x-npy": lambda: np.load(io.BytesIO(body)),
    }
    np.testing.assert_array_equal(read[accept](), y)


def test_what_a_handler_refuses_has_the_status_that_it_says(
    digits: tuple[str, np.ndarray, np.ndarray],
) -> None:
    assert post(digits[0], b"{}", "application/json")[0] == 400
    status, _, said = post(digits[0], b"<x/>", "application/xml")
    assert (status, said) == (415, b"the content type 'application/xml' is not supported")


def test_another_error_of_a_handler_is_one_of_the_server(tmp_path: Path) -> None:
    code = "def model_fn(d): return 0\ndef input_fn(b, k): return 1 / 0\npredict_fn = output_fn = input_fn\n"
    with container(archive(tmp_path, code)) as said:
        status, _, body = post(said["url"], b"[[1]]", "application/json")
    assert (status, body) == (500, b"ZeroDivisionError: division by zero")


def test_transform_fn_stands_for_the_three(tmp_path: Path) -> None:
    with container(archive(tmp_path, TOGETHER)) as said:
        assert post(said["url"], b"1", "text/csv") == (200, "text/plain", b"3 str text/csv")
        assert post(said["url"], b"1", "application/x-npy")[2] == b"3 bytes application/x-npy"


MODEL_ALONE = """
import torch

def model_fn(model_dir):
    return torch.nn.Linear(3, 2)
"""


def test_what_the_defaults_read_is_refused_with_4xx(tmp_path: Path) -> None:
    """Where a script has model_fn alone: never 500, never a traceback."""
    wrong = [
        (b"\xff[[1, 2, 3]]", "application/json", 400), (b"[[1, 2, 3", "application/json", 400),
        (b"[[1, 2]]", "application/json", 400), (b'{"text": "a"}', "application/json", 400),
        (b'{"inputs": {}}', "application/json", 400), (b"[[1, null, 3]]", "application/json", 400),
        (b"1;2;3", "text/csv", 400), (b"1,2,3", "text/plain", 415), (b"PK\x03\x04", "application/x-npz", 400),
        (b"\x93NUMPY\x01\x00\x0a\x00{'descr': (", "application/x-npy", 400),
    ]  # fmt: skip
    with container(archive(tmp_path, MODEL_ALONE)) as said:
        for body, kind, status in wrong:
            found, _, text = post(said["url"], body, kind)
            assert (body, found) == (body, status)
            assert text
            assert b"Traceback" not in text
        assert post(said["url"], b"[[1, 2, 3]]", "application/json", "image/png")[0] == 406
        accept = "image/png, text/csv;q=0.5"
        status, kind, text = post(said["url"], b'{"inputs": {"x": [[1, 2, 3]]}}', "application/json", accept)
        assert (status, kind, text.count(b",")) == (200, "text/csv", 1)


def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with container(package(tmp_path, 2)) as said:
        connection = http.client.HTTPConnection(said["url"].removeprefix("http://"))
        connection.putrequest("POST", "/invocations")
        connection.putheader("Content-Length", str((25 << 20) + 1))
        connection.endheaders()
        answer = connection.getresponse()
        said_back = (answer.status, answer.read())
        connection.close()
    assert said_back == (413, b"the body has 26214401 bytes, more than 26214400")


@pytest.mark.parametrize(
    ("code", "name", "error"),
    [
        (TOGETHER + "def input_fn(b, k): pass", "code/inference.py", "stands for input_fn too"),
        ("import nothing_of_this_name", "code/inference.py", "No module named 'nothing_of_this_name'"),
        (INFERENCE, "code/other.py", "the package has no code/inference.py"),
        (INFERENCE, "../inference.py", "outside the archive"),
        (INFERENCE, "code/inference.py", "No such file or directory"),
    ],
    ids=["two ways", "import", "no code", "a path that leaves", "model_fn"],
)
def test_what_a_container_rejects_does_not_start(tmp_path: Path, code: str, name: str, error: str) -> None:
    with container(archive(tmp_path, code, name)) as said:
        assert error in said["error"]
