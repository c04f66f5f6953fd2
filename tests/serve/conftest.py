"""The models that are served, converted once, and servers that tests only ask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve import models
from tests.serve.ray_serve import interpreter
from tests.serve.server import Server, serving

os.environ.setdefault("SERVE_WORKERS", "1")
"""What tests ask is one process, whatever the machine; tests of several say so."""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> models.Digits:
    """The digits with their bundle, as ONNX and TorchScript."""
    return models.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def other(digits: models.Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' ONNX model with another bias."""
    return models.other_weights(digits.onnx, tmp_path_factory.mktemp("other") / "model")


@pytest.fixture(scope="session")
def ray_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with Ray Serve, which slow tests start."""
    return interpreter(tmp_path_factory.mktemp("ray-python") / "venv")


def _behind(
    framework: str, digits: models.Digits, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    options = ("--server", framework, "--name", "digits", "--max-body", "64KiB", "--max-samples", "8")
    with serving(digits.onnx, *options, folder=tmp_path_factory.mktemp(framework)) as running:
        yield running


@pytest.fixture(scope="session")
def fastapi(digits: models.Digits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The digits behind FastAPI and uvicorn."""
    yield from _behind("fastapi", digits, tmp_path_factory)


@pytest.fixture(scope="session")
def flask(digits: models.Digits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The digits behind Flask and waitress."""
    yield from _behind("flask", digits, tmp_path_factory)


@pytest.fixture(params=["fastapi", "flask"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the two."""
    running: Server = request.getfixturevalue(request.param)
    return running


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with two inputs."""
    folder = tmp_path_factory.mktemp("scorer")
    with serving(models.scorer(folder / "model"), "--name", "scorer", folder=folder) as running:
        yield running


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes as long as it is asked to; in a thread, since at least five times what the loop runs."""
    return models.slow(tmp_path_factory.mktemp("slow") / "model", 4000)
