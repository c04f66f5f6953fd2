"""package.kserve: the manifest, read by KServe's own client, which asks our server, too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from deploy_runner.sdk import GateError, StageError, sha256_file
from deploy_runner.stages.model import protos
from deploy_runner.testing import StageRun, run_stage
from tests import venvs
from tests.bundles import stage
from tests.conftest import HELD, Project
from tests.serve import models
from tests.serve.server import serving

IMAGE = f"ghcr.io/me/digits@sha256:{'0' * 64}"


@pytest.fixture(scope="session")
def repository(digits: models.Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    inputs = {"model": digits.onnx}
    return run_stage(stage("package.triton"), folder, inputs=inputs, params={"name": "digits"})["repository"]


def context_of(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "Dockerfile").write_text("\n".join(("FROM x", *lines, "")))
    return folder


def packed(folder: Path, inputs: dict[str, Path], **params: Any) -> StageRun:
    return run_stage(stage("package.kserve"), folder, inputs=inputs, params={"name": "digits", **params})


def manifest(made: StageRun) -> Any:
    return yaml.safe_load(made["manifest"].read_text())


@pytest.mark.slow
def test_a_repository_is_served_from_where_it_was_pushed(tmp_path: Path, repository: Path) -> None:
    project = Project(tmp_path / "project")
    project.pipeline(
        """
        push: {uses: push.s3, inputs: {artifact: models}, with: {prefix: models/digits}}
        service:
          uses: package.kserve
          inputs: {repository: models, pushed: "${{ stages.push.outputs.transcript }}"}
          with: {name: digits, cpu: 500m, max_replicas: 3, service_account: reader}
        """
    )
    subprocess.run(["cp", "-r", repository, project.folder / "models"], check=True)
    target = {"name": "dry-run", "aws": {"region": "us-east-1", "bucket": "models", "create_bucket": True}}
    project.write("dry-run.yaml", json.dumps({"target": target}))
    stages = project.run("--config", "dry-run.yaml")["stages"]
    made = yaml.safe_load(project.output("service.manifest", "--config", "dry-run.yaml"))
    assert made == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "digits"},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 3,
                "serviceAccountName": "reader",
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "protocolVersion": "v2",
                    "storageUri": f"s3://models/models/digits/{stages['push']['figures']['digest']}",
                    "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}},
                },
            }
        },
    }


def test_another_repository_than_was_pushed_is_refused(tmp_path: Path, repository: Path) -> None:
    files = {
        p.relative_to(repository).as_posix(): sha256_file(p) for p in repository.rglob("*") if p.is_file()
    }
    pushed = tmp_path / "transcript.json"
    pushed.write_text(json.dumps({"uri": "s3://models/x", "files": files}))
    made = manifest(packed(tmp_path / "o", {"repository": repository, "pushed": pushed}))
    assert made["spec"]["predictor"]["model"]["storageUri"] == "s3://models/x"
    pushed.write_text(
        json.dumps({"uri": "s3://models/x", "files": files | {"digits/1/model.onnx": "0" * 64}})
    )
    with pytest.raises(GateError, match="what was pushed to s3://models/x is not this repository"):
        packed(tmp_path / "p", {"repository": repository, "pushed": pushed})
    pushed.write_text("{}")
    with pytest.raises(StageError, match="`pushed` is no transcript of push.s3"):
        packed(tmp_path / "q", {"repository": repository, "pushed": pushed})


def test_our_own_image_is_a_container_with_its_port_and_user(tmp_path: Path) -> None:
    context = context_of(tmp_path / "context", "USER 10001:10001", "EXPOSE 8000")
    made = manifest(
        packed(tmp_path / "p", {"context": context}, image=IMAGE, namespace="models", memory="2Gi")
    )
    assert made["metadata"] == {"name": "digits", "namespace": "models"}
    (container,) = made["spec"]["predictor"]["containers"]
    assert container["image"] == IMAGE
    assert container["ports"] == [{"containerPort": 8000, "protocol": "TCP"}]
    assert container["securityContext"]["runAsUser"] == 10001
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": 8000}


@pytest.mark.parametrize(
    ("inputs", "params", "said"),
    [
        ((), {}, "one of `repository` and `context` is needed"),
        (("repository", "context"), {}, "one of `repository` and `context` is needed"),
        (("repository",), {}, "nothing says where the repository lies"),
        (("repository",), {"storage_uri": "models/digits"}, "is no address that KServe downloads from"),
        (("repository",), {"image": IMAGE}, "image needs `context`"),
        (("context",), {}, "`context` needs image"),
        (("context",), {"image": IMAGE}, "has no Dockerfile with EXPOSE"),
        (
            ("repository",),
            {"min_replicas": 3, "max_replicas": 2},
            "max_replicas 2 is less than min_replicas 3",
        ),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, repository: Path, inputs: tuple[str, ...], params: dict[str, Any], said: str
) -> None:
    given = {"repository": repository, "context": context_of(tmp_path / "context")}
    with pytest.raises((StageError, ValidationError), match=said):
        packed(tmp_path / "p", {name: given[name] for name in inputs}, **params)


@pytest.mark.parametrize("name", ["Digits", "1digits", "digits-", "digits.v1", "d" * 54])
def test_names_that_kserve_refuses_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        packed(tmp_path / "p", {}, name=name)


_READ = """
import sys
import kserve, kubernetes.client, yaml

def built(value, kind):
    if kind.startswith("list["):
        return [built(item, kind[5:-1]) for item in value]
    cls = getattr(kserve, kind, None) or getattr(kubernetes.client, kind, None)
    if not hasattr(cls, "attribute_map"):
        return value
    if unknown := set(value) - set(cls.attribute_map.values()):
        sys.exit(f"{kind} has no {unknown}")
    names = {key: name for name, key in cls.attribute_map.items()}
    return cls(**{names[key]: built(row, cls.openapi_types[names[key]]) for key, row in value.items()})

built(yaml.safe_load(open(sys.argv[1])), "V1beta1InferenceService")
"""
"""Builds the objects of KServe's client, which have the fields of the CRD."""

_ASK = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = sys.argv[1]
    assert await client.is_server_ready(url) and await client.is_server_live(url)
    assert await client.is_model_ready(url, "digits")
    images = np.load(sys.argv[2])
    given = InferInput("image", list(images.shape), "FP32")
    given.set_data_from_numpy(images, binary_data=False)
    answer = await client.infer(url, InferRequest("digits", [given]), model_name="digits")
    print(json.dumps(answer.outputs[0].as_numpy().tolist()))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return venvs.made(tmp_path_factory.mktemp("kserve") / "venv", "kserve==0.21.0")


@pytest.mark.slow
def test_kserves_client_knows_every_field(tmp_path: Path, repository: Path, kserve: Path) -> None:
    context = context_of(tmp_path / "context", "USER 10001:10001", "EXPOSE 8000")
    options = {
        "namespace": "models",
        "cpu": "1",
        "memory": "2Gi",
        "max_replicas": 3,
        "service_account": "reader",
    }
    for made in (
        packed(tmp_path / "1", {"repository": repository}, storage_uri="s3://models/digits", **options),
        packed(tmp_path / "2", {"context": context}, image=IMAGE, **options),
    ):
        command = [str(kserve), "-c", _READ, str(made["manifest"])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made["manifest"].write_text(made["manifest"].read_text().replace("minReplicas", "minReplica"))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == "V1beta1PredictorSpec has no {'minReplica'}\n"


@pytest.mark.slow
def test_kserves_client_asks_our_server(tmp_path: Path, digits: models.Digits, kserve: Path) -> None:
    with np.load(HELD) as held:
        images = held["x"][:5].astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    with serving(digits.onnx, "--name", "digits", folder=tmp_path / "served") as server:
        command = [str(kserve), "-c", _ASK, server.url, str(tmp_path / "images.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = protos.runner(digits.onnx, threads=1)({"image": images})["output"]
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, rtol=1e-5, atol=1e-5)
