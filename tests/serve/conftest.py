"""The models that are served, converted once, and servers that tests only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve import models
from tests.serve.server import Server, serving


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> models.Digits:
    """The digits with their bundle, as ONNX and TorchScript."""
    return models.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def other(digits: models.Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' ONNX model with another bias."""
    return models.other_weights(digits.onnx, tmp_path_factory.mktemp("other") / "model")


@pytest.fixture(scope="module", params=["fastapi", "flask"])
def server(
    request: pytest.FixtureRequest, digits: models.Digits, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The digits behind each of the two frameworks."""
    options = ("--server", request.param, "--name", "digits", "--max-body", "64KiB", "--max-samples", "8")
    with serving(digits.onnx, *options, folder=tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with two inputs."""
    folder = tmp_path_factory.mktemp("scorer")
    with serving(models.scorer(folder / "model"), "--name", "scorer", folder=folder) as running:
        yield running
