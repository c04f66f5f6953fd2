"""Packages whose container does what a test wants, and a local AWS to push them to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from deploy_runner.local.servers import dry_run
from deploy_runner.sdk import Context, sha256_file
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage
from tests.conftest import Project

TARGET: dict[str, Any] = {
    "aws": {
        "region": "us-east-1", "bucket": "dry-run-models", "create_bucket": True,
        "role_arn": "arn:aws:iam::123456789012:role/sagemaker", "image_uri": "image:latest",
    },
    "hub": {"namespace": "local"},
}  # fmt: skip

INFERENCE = """
import io
import json
import numpy as np

def model_fn(model_dir):
    return float(open(model_dir + "/factor.txt").read())

def input_fn(body, content_type):
    if content_type == "application/x-npy":
        return np.load(io.BytesIO(body))
    return np.asarray(json.loads(body)["inputs"]["x"])

def predict_fn(x, factor):
    return x * factor

def output_fn(result, accept):
    if accept == "application/x-npy":
        np.save(answer := io.BytesIO(), result)
        return answer.getvalue(), accept
    return json.dumps({"outputs": {"y": result.tolist()}})
"""


def package(
    folder: Path, factor: float | str, *, name: str = "model.tar.gz", padding: int = 0, device: str = ""
) -> Path:
    """Write a package whose model multiplies by a factor; one that is no number doesn't start."""
    from deploy_runner.stages.package import archives

    parts = {"factor.txt": str(factor).encode(), "code/inference.py": INFERENCE.encode()}
    if device:
        parts["model.json"] = json.dumps({"device": device}).encode()
    if padding:
        parts["weights.bin"] = np.random.default_rng(0).bytes(padding)
    members = {}
    for part, data in parts.items():
        members[part] = folder / "parts" / part
        members[part].parent.mkdir(parents=True, exist_ok=True)
        members[part].write_bytes(data)
    archives.pack(folder / name, members)
    return folder / name


def smoke(folder: Path, factor: float) -> Path:
    """Write the requests and answers of a package with this factor."""
    from deploy_runner.stages.model import bundles

    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    bundles.write_cases(folder / "smoke.npz", [bundles.Case("first", {"x": x}, {"y": x * factor})])
    return folder / "smoke.npz"


def live_project(folder: Path, url: str) -> Project:
    """Make a project that pushes to the endpoint `e` of a local AWS at an address, as if that were the real one."""
    project = Project(folder)
    project.pipeline(
        """
        endpoint:
          uses: push.sagemaker
          inputs: {package: model.tar.gz, smoke: smoke.npz}
          with: {endpoint: e, registry: {group: g}}
        """
    )
    project.write(
        "configs/production.yaml",
        """
        target:
          name: production
          live: true
          aws: {region: us-east-1, bucket: models, create_bucket: true, role_arn: "arn:aws:iam::123456789012:role/r",
                image_uri: "image:1"}
        """,
    )
    project.env |= {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "canary-of-a-secret-key",
    }  # fmt: skip
    release(project, 2)
    return project


def release(project: Project, factor: float) -> None:
    """Put another package in place."""
    package(project.folder, factor)
    smoke(project.folder, factor)


@contextmanager
def local_aws(
    folder: Path, monkeypatch: pytest.MonkeyPatch, images: Mapping[str, Path] | None = None
) -> Iterator[str]:
    """Start the AWS of a dry run, which has these images, point the clients to it, and yield its address."""
    with dry_run(folder, services=("aws",), log=lambda line: None, images=images) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield env["AWS_ENDPOINT_URL"]


def deploy(
    folder: Path, factor: float | str, *, tested: float | None = None, inputs: Mapping[str, Any] | None = None,
    **params: Any,
) -> StageRun:  # fmt: skip
    """Push a package with this factor to the endpoint `e`, tested with the answers of another one."""
    run = folder / f"run{len(list(folder.iterdir()))}"
    run.mkdir()
    given: dict[str, Any] = {"package": package(run, factor)} | dict(inputs or {})
    if tested is not None:
        given["smoke"] = smoke(run, tested)
    return run_stage(
        stage("push.sagemaker"), run, inputs=given, params={"endpoint": "e", **params}, target=TARGET
    )


def rolled_back(folder: Path, endpoint: str = "e", to: str = "") -> str:
    """Roll an endpoint back, and return what is said."""
    kind = stage("push.sagemaker")
    ctx = Context(stage="push", workdir=folder, target=TARGET)
    return str(kind().rollback(ctx, kind.Params.model_validate({"endpoint": endpoint}), to))


def differing(folder: Path, factor: float) -> dict[str, str]:
    """Return what `status` finds to differ from a push of this factor with its smoke test."""
    kind = stage("push.sagemaker")
    given = package(folder, factor)
    ctx = Context(stage="push", workdir=folder, target=TARGET, digests={"package": sha256_file(given)})
    inputs = kind.Inputs.model_validate({"package": given, "smoke": smoke(folder, factor)})
    found = kind().status(ctx, kind.Params.model_validate({"endpoint": "e"}), inputs)
    return {row.what: row.found for row in found if not row.in_sync}


def answer(x: float) -> float:
    """Ask the endpoint `e` of the AWS that the environment names."""
    runtime = boto3.client("sagemaker-runtime", region_name="us-east-1")
    body = json.dumps({"inputs": {"x": [x]}})
    given = runtime.invoke_endpoint(EndpointName="e", Body=body, ContentType="application/json")
    (value,) = json.loads(given["Body"].read())["outputs"]["y"]
    return float(value)


def calls(run: StageRun) -> list[str]:
    """Return the calls of a push that changed something, in order."""
    return [call["call"] for call in json.loads(run["transcript"].read_text())["calls"]]
