"""One model.tar.gz answers alike in SageMaker's PyTorch image (its toolkit) and its Ray Serve image (real Ray)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.serve import models, scripts
from tests.serve.ray_serve import RayServe, ray_serve
from tests.serve.toolkit import Toolkit, toolkit

pytestmark = pytest.mark.slow
JSON = "application/json"


def _smoke(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the requests of a smoke.npz with their answers."""
    with np.load(path) as arrays:
        names = {tuple(key.split("/")) for key in arrays.files if "/" in key}
        for case in sorted({name[0] for name in names}):
            sides = [
                {name[2]: arrays["/".join(name)] for name in names if name[:2] == (case, side)}
                for side in ("in", "out")
            ]
            yield sides[0], sides[1]


@pytest.fixture(scope="module")
def packages(digits: models.Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Packages by the route that they get in Serve, / being the one that is started as the image does it."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("ONE", "FOUR", "TRANSFORM"):
        (folder / f"{name}.py").write_text(getattr(scripts, name))
    script = {"model": digits.torchscript, "reference": digits.bundle}
    inputs: dict[str, dict[str, Path]] = {
        "/": {"model": digits.onnx, "reference": digits.bundle},
        "/two": {"model": models.two_outputs(folder / "two")},
        "/one": {**script, "code": folder / "ONE.py"},
        "/four": {**script, "code": folder / "FOUR.py"},
        "/transform": {"model": digits.onnx, "reference": digits.bundle, "code": folder / "TRANSFORM.py"},
    }
    packed = stage("package.sagemaker")
    return {
        route: dict(run_stage(packed, folder / str(place), inputs=given).outputs)
        for place, (route, given) in enumerate(inputs.items())
    }


@pytest.fixture(scope="module")
def serve(
    packages: dict[str, dict[str, Path]], ray_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayServe]:
    archives = {route: made["package"] for route, made in packages.items()}
    with ray_serve(ray_python, archives, tmp_path_factory.mktemp("ray")) as running:
        running.wait()
        yield running


@pytest.fixture(scope="module")
def kits(
    packages: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Toolkit]]:
    with ExitStack() as stack:
        yield {
            route: stack.enter_context(toolkit(made["package"], tmp_path_factory.mktemp("kit")))
            for route, made in packages.items()
        }


def test_both_give_the_packed_models_answers(
    packages: dict[str, dict[str, Path]], serve: RayServe, kits: dict[str, Toolkit]
) -> None:
    for inputs, outputs in _smoke(packages["/"]["smoke"]):
        body = json.dumps({"inputs": {name: array.tolist() for name, array in inputs.items()}}).encode()
        status, answer, kind = serve.ask(body, JSON)
        assert (status, kind) == (200, JSON)
        assert kits["/"].ask(body, JSON) == (200, json.loads(answer))
        np.testing.assert_allclose(
            json.loads(answer)["outputs"]["output"], outputs["output"], rtol=1e-4, atol=1e-5
        )


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


WRONG = [
    (b"{", JSON, 400), (b"{}", JSON, 400), (b'{"inputs": null}', JSON, 400), (b"[]", JSON, 400),
    (b'{"inputs": {"y": [1]}}', JSON, 400), (b"[[1, 2]]", JSON, 400), (b'["a"]', JSON, 400),
    (b"[[1], [2, 3]]", JSON, 400), (b"1,2,x", "text/csv", 400), (b"", "text/csv", 400),
    (b"\x93NUMPY", "application/x-npy", 400), (_npy([[1.0]]), "application/x-npy", 400),
    (_npy([object()]), "application/x-npy", 400), (b"PK", "application/x-npz", 400), (b"<x/>", "application/xml", 415),
]  # fmt: skip


@pytest.mark.parametrize("route", ["/", "/one"])
def test_wrong_requests_have_the_same_status_and_one_sentence(
    route: str, serve: RayServe, kits: dict[str, Toolkit]
) -> None:
    found = {}
    for body, kind, wanted in WRONG:
        status, said, _ = serve.ask(body, kind, route=route)
        found[body, kind] = (status, kits[route].ask(body, kind)[0], wanted)
        assert said
        assert b"Traceback" not in said
        assert b"\n" not in said
    assert {key: one for key, one in found.items() if len(set(one)) > 1} == {}


@pytest.mark.parametrize("kind", ["text/csv", "application/x-npy"])
def test_several_outputs_are_never_answered_with_the_first(
    kind: str, serve: RayServe, kits: dict[str, Toolkit]
) -> None:
    status, said, _ = serve.ask(b"[[1, 2]]", JSON, kind, route="/two")
    assert (status, kits["/two"].ask(b"[[1, 2]]", JSON, kind)[0]) == (406, 406)
    assert said == f"{kind} holds one array, the model has 2 outputs: use JSON".encode()
    assert serve.ask(b"[[1, 2]]", JSON, route="/two")[0] == 200


@pytest.fixture(scope="module")
def pytorch_toolkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SageMaker's PyTorch toolkit, 324 KB, without torchserve and what else it would bring."""
    folder = tmp_path_factory.mktemp("pytorch-toolkit")
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
               "--target", str(folder), "sagemaker-pytorch-inference==2.0.25"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(
    ("route", "script", "body"),
    [
        ("/one", scripts.ONE, "{}"),
        ("/four", scripts.FOUR, '{{"inputs": {}}}'),
        ("/transform", scripts.TRANSFORM, "{}"),
    ],
)
def test_a_script_answers_as_it_does_by_itself_in_the_pytorch_toolkit(
    route: str, script: str, body: str, packages: dict[str, dict[str, Path]], digits: models.Digits,
    pytorch_toolkit: Path, serve: RayServe, kits: dict[str, Toolkit], tmp_path: Path,
) -> None:  # fmt: skip
    import tarfile

    (tmp_path / "inference.py").write_text(script)
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(digits.torchscript, "model.pt")
        archive.add(digits.onnx / "model.onnx", "model.onnx")
        archive.add(tmp_path / "inference.py", "code/inference.py")
    inputs, outputs = next(_smoke(packages[route]["smoke"]))
    (x,), (y,) = inputs.values(), outputs.values()
    asked = body.format(json.dumps(x.tolist())).encode()
    with toolkit(tmp_path / "model.tar.gz", tmp_path, pytorch=pytorch_toolkit) as alone:
        status, said = alone.ask(asked, JSON)
    assert status == 200
    assert kits[route].ask(asked, JSON) == (200, said)
    assert json.loads(serve.ask(asked, JSON, route=route)[1]) == said
    np.testing.assert_allclose(
        said["predictions"] if route == "/transform" else said, y, rtol=1e-4, atol=1e-5
    )


def test_a_model_that_cant_be_loaded_is_never_healthy(
    digits: models.Digits, ray_python: Path, tmp_path: Path
) -> None:
    """Serve's health check says 200 while __init__ runs and after it has failed, but not before the import."""
    (tmp_path / "inference.py").write_text(
        "import os\ndef model_fn(d):\n    assert not os.path.exists(d + '/../serve.log'), 'no weights'\n"
        "def transform_fn(m, b, k, a): return b\n"
    )
    given = {"model": digits.onnx, "code": tmp_path / "inference.py"}
    made = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=given)
    (tmp_path / "r").mkdir()
    with ray_serve(ray_python, {"/": made["package"]}, tmp_path / "r") as running:
        running.wait_for("failed with exception")
        assert not running.healthy()
        assert "AssertionError: no weights" in running.log
