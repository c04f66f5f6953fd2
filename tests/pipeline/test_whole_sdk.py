"""The whole SageMaker SDK v3, as users have it, reads, asks, updates and rebuilds what push.sagemaker has deployed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.aws import answer, deploy, local_aws

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
SILENT = "SchemaVersion: '1.0'\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n"
USE = """
import json
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.serve.model_builder import ModelBuilder

def ask(endpoint):
    body = b'{"inputs": {"x": [[10.0]]}}'
    answer = endpoint.invoke(body=body, content_type="application/json", accept="application/json")
    return json.loads(answer.body.read())["outputs"]["y"]

endpoint = Endpoint.get(endpoint_name="e")
config = EndpointConfig.get(endpoint_config_name=endpoint.endpoint_config_name)
model = Model.get(model_name=config.production_variants[0].model_name)
container = model.primary_container
found = {"status": endpoint.endpoint_status, "answer": ask(endpoint), "image": container.image}

builder = ModelBuilder(
    s3_model_data_url=container.model_data_url, image_uri=container.image, role_arn=model.execution_role_arn,
    instance_type="ml.m5.large", env_vars=dict(container.environment),
)
builder.build(model_name="rebuilt")
found["rebuilt"] = ask(builder.deploy(endpoint_name="another", initial_instance_count=1))

variant = {"variant_name": "AllTraffic", "model_name": "rebuilt", "instance_type": "ml.m5.large",
           "initial_instance_count": 1}
EndpointConfig.create(endpoint_config_name="theirs", production_variants=[variant])
endpoint.endpoint_config_name = "theirs"
endpoint.update()
endpoint.wait_for_status("InService")
found["updated"] = [Endpoint.get(endpoint_name="e").endpoint_config_name, ask(endpoint)]
print()  # The SDK ends its own lines without.
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with all of `sagemaker`: 134 packages, 1 GB, which is why nothing else has it."""
    folder = tmp_path_factory.mktemp("sdk") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, "sagemaker==3.27.0"], check=True, capture_output=True)
    return folder / "bin/python"


@pytest.mark.slow
def test_the_whole_sdk_takes_what_is_deployed(
    sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(SILENT)
    with local_aws(tmp_path / "aws", monkeypatch):
        deploy(tmp_path, 2, tested=2)
        iam = boto3.client("iam", region_name="us-east-1")
        iam.create_role(RoleName="sagemaker", AssumeRolePolicyDocument=json.dumps(TRUST))
        settings = {
            "AWS_DEFAULT_REGION": "us-east-1", "SAGEMAKER_USER_CONFIG_OVERRIDE": str(tmp_path / "config.yaml")
        }  # fmt: skip
        done = subprocess.run(
            [str(sdk), "-c", USE], cwd=tmp_path, env={**os.environ, **settings}, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert found == {
            "status": "InService", "image": "image:latest", "answer": [[20.0]], "rebuilt": [[20.0]],
            "updated": ["theirs", [[20.0]]],
        }  # fmt: skip
        deploy(tmp_path, 3, tested=3)
        assert answer(10.0) == 30.0
