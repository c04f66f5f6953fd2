"""A project from a checkpoint to every target that takes raw input, and all of them asked alike."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy_runner import api
from tests.conftest import ROOT, module_of
from tests.serve.containers import started
from tests.serve.ray_serve import ray_serve
from tests.serve.server import serving
from tests.serve.toolkit import toolkit

__all__ = [
    "IO",
    "MODEL",
    "ONNX",
    "PACKAGE",
    "Files",
    "check_targets",
    "code_of",
    "fetched",
    "prepared",
    "project",
    "trained",
]

MODEL, IO = "${{ stages.model.outputs.model }}", "${{ stages.io.outputs.io }}"
ONNX, PACKAGE = "${{ stages.onnx.outputs.model }}", "${{ stages.sagemaker.outputs.package }}"
_DRY: Any = yaml.safe_load((ROOT / "configs/dry-run.yaml").read_text())["target"]
Ask = Callable[[bytes, str], tuple[int, Any]]
Files = list[tuple[bytes, str]]
"""Raw input with its content type."""


def project(
    folder: Path, code: str, model: Mapping[str, Any], io: Mapping[str, Any], **pushes: Mapping[str, Any]
) -> None:
    """Write the training's code, which saves its checkpoint, and the pipeline from there to every target."""
    (folder / "training.py").write_text(textwrap.dedent(code))
    packed = {"model": ONNX, "reference": MODEL, "io": IO}
    stages = {
        **model,
        "io": {"uses": "model.io", **io},
        "onnx": {"uses": "onnx.export", "inputs": {"model": MODEL}},
        "container": {"uses": "package.container", "inputs": packed},
        "sagemaker": {"uses": "package.sagemaker", "inputs": packed},
        **pushes,
    }
    text = yaml.safe_dump({"version": 1, "name": "raw", "target": _DRY, "stages": stages}, sort_keys=False)
    (folder / "pipeline.yaml").write_text(text)


def code_of(folder: Path) -> Any:
    """Return the training's module, with the same random numbers in every run."""
    import torch

    torch.manual_seed(0)
    return module_of(folder / "training.py")


def prepared(folder: Path, **params: Any) -> dict[str, Any]:
    weights = {"weights": "${{ stages.weights.outputs.weights }}"}
    return {
        "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": "model.pt"}},
        "model": {"uses": "model.prepare", "inputs": weights, "with": params},
    }


def fetched(folder: Path, output: str) -> Path:
    """Copy an output of the pipeline out of the store."""
    command = [sys.executable, "-m", "deploy_runner", "get", output, "--to", output]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / output


@contextmanager
def _targets(folder: Path, ray_python: Path | None) -> Iterator[dict[str, Ask]]:
    """Run the pipeline, start what it made, in Ray Serve too where there is one, and give a way to ask each."""
    pipeline = api.load(folder / "pipeline.yaml")
    record = api.run(pipeline)
    assert record.exit_code == 0, [s.get("error") for s in record.stages.values()]
    for name in ("container.context", "sagemaker.package"):
        fetched(folder, name)
    package, context = folder / "sagemaker.package", folder / "container.context"
    with ExitStack() as stack:
        served = stack.enter_context(
            serving("onnx", "--reference", "model.model", "--io", "io", folder=folder / "s", cwd=folder)
        )
        contained = stack.enter_context(started(context, folder / "c"))
        packed = stack.enter_context(toolkit(package, folder / "k"))

        def over_http(server: Any) -> Ask:
            def ask(body: bytes, kind: str) -> tuple[int, Any]:
                answer = server.ask("POST", "/predict", raw=body, headers={"content-type": kind})
                return answer.status, answer.json

            return ask

        asked = {"serve": over_http(served), "container": over_http(contained), "sagemaker": packed.ask}
        if ray_python is not None:
            (folder / "r").mkdir()
            serve = stack.enter_context(ray_serve(ray_python, {"/": package}, folder / "r"))
            serve.wait()
            asked["ray"] = lambda body, kind: _parsed(*serve.ask(body, kind))
        yield asked


def _parsed(status: int, body: bytes, _: str) -> tuple[int, Any]:
    return status, json.loads(body) if status == 200 else body.decode()


def check_targets(
    folder: Path, files: Files, expected: list[Any], *, bad: Files, keys: tuple[str, ...] = ("score",),
    ray_python: Path | None = None,
) -> None:  # fmt: skip
    with _targets(folder, ray_python) as found:
        for (body, kind), wanted in zip(files, expected, strict=True):
            answers = {name: ask(body, kind) for name, ask in found.items()}
            status, answer = answers["serve"]
            assert all(one == (200, answer) for one in answers.values()), answers
            assert answer["prediction"] == wanted[0]
            for key, value in zip(keys, wanted[1:], strict=True):
                assert answer[key] == pytest.approx(value, abs=1e-5)
            assert status == 200
        for body, kind in bad:
            for ask in found.values():
                status, said = ask(body, kind)
                assert 400 <= status < 500, said
    assert len({wanted[0] for wanted in expected}) > 1, "a model that always says the same proves nothing"


def trained(net: Any, inputs: Mapping[str, Any], targets: Any, steps: int = 60) -> Any:
    import torch

    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(**inputs), torch.from_numpy(targets)).backward()
        optimizer.step()
    return net.eval()
