"""What only a GPU shows: models run there, by the provider that was asked for, and answer as the original."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy_runner.engine.execute import gpus
from deploy_runner.server.devices import onnx_session
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.serve.models import Digits, digits
from tests.serve.server import serving

pytestmark = pytest.mark.skipif(not gpus.usable({}), reason="this machine has no GPU of NVIDIA's")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_model_on_a_gpu_agrees_with_the_original(model: Digits, tmp_path: Path, kind: str) -> None:
    given = {"candidate": getattr(model, kind), "reference": model.bundle}
    for uses in ("verify.parity", "verify.latency"):
        run_stage(stage(uses), tmp_path / uses, inputs=given, params={"device": "cuda"})


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_package_for_sagemaker_answers_from_a_gpu(model: Digits, tmp_path: Path, kind: str) -> None:
    """Its own code is asked with the reference cases, and compared with the model there."""
    given = {"model": getattr(model, kind), "reference": model.bundle}
    made = run_stage(stage("package.sagemaker"), tmp_path / "p", inputs=given, params={"device": "cuda"})
    assert made.figures["max_abs"] < 1e-4


def test_the_provider_is_cuda() -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", ports[:1], ports[1:])
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    opened = onnx_session(made.SerializeToString(), onnxruntime.SessionOptions(), "cuda")
    assert opened.get_providers()[0] == "CUDAExecutionProvider"
    x = np.random.default_rng(0).normal(size=(3, 8)).astype("f4")
    np.testing.assert_allclose(opened.run(None, {"x": x})[0], torch.from_numpy(x).softmax(1), atol=1e-6)


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_the_server_answers_from_a_gpu(model: Digits, tmp_path: Path, kind: str) -> None:
    image = np.random.default_rng(0).random((5, 1, 8, 8), "f4")
    options = ("--reference", model.bundle, "--trust")
    with serving(getattr(model, kind), *options, "--device", "cuda", folder=tmp_path / "gpu") as server:
        there = server.predict({"inputs": image.tolist()}).json
    with serving(getattr(model, kind), *options, folder=tmp_path / "cpu") as server:
        here = server.predict({"inputs": image.tolist()}).json
    for name, values in here["outputs"].items():
        np.testing.assert_allclose(there["outputs"][name], values, atol=1e-4)
