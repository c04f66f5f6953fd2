"""The local AWS answers as AWS does where moto differs."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy_runner.local.aws"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.fixture
def client(url: str) -> Any:
    return lambda service: boto3.client(
        service, endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )


def make(sagemaker: Any, name: str) -> None:
    sagemaker.create_model(ModelName=name, ExecutionRoleArn="arn:aws:iam::123456789012:role/r",
                           PrimaryContainer={"Image": "i", "ModelDataUrl": "s3://b/k"})  # fmt: skip
    variant = {
        "VariantName": "main",
        "ModelName": name,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])


def test_a_name_that_exists_is_refused_in_awss_words(client: Any) -> None:
    sagemaker = client("sagemaker")
    make(sagemaker, "twice")
    with pytest.raises(
        ClientError, match='Cannot create already existing model "arn:aws:sagemaker:us-east-1:.*model/twice"'
    ):
        make(sagemaker, "twice")


def test_an_unknown_name_is_refused_in_awss_words(client: Any) -> None:
    sagemaker = client("sagemaker")
    with pytest.raises(ClientError, match="Could not find model"):
        sagemaker.describe_model(ModelName="nope")
    with pytest.raises(ClientError, match="Could not find endpoint"):
        sagemaker.describe_endpoint(EndpointName="nope")
    variant = {
        "VariantName": "m",
        "ModelName": "nope",
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    with pytest.raises(ClientError, match="Could not find model"):
        sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])


def test_empty_members_are_left_out(client: Any) -> None:
    sagemaker = client("sagemaker")
    make(sagemaker, "plain")
    described = sagemaker.describe_model(ModelName="plain")
    assert not {"Containers", "VpcConfig"} & set(described)
    assert "DataCaptureConfig" not in sagemaker.describe_endpoint_config(EndpointConfigName="plain")


def test_an_endpoint_passes_through_its_states_and_keeps_the_old_config_until_done(client: Any) -> None:
    sagemaker = client("sagemaker")
    make(sagemaker, "old")
    make(sagemaker, "new")
    sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="old")
    states = [sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] for _ in range(2)]
    assert states == ["Creating", "InService"]
    sagemaker.update_endpoint(EndpointName="e", EndpointConfigName="new")
    seen = [sagemaker.describe_endpoint(EndpointName="e") for _ in range(2)]
    assert [(d["EndpointStatus"], d["EndpointConfigName"]) for d in seen] == [
        ("Updating", "old"),
        ("InService", "new"),
    ]
    with pytest.raises(ClientError, match="an endpoint uses it"):
        sagemaker.delete_endpoint_config(EndpointConfigName="new")


def test_the_sdk_creates_reads_and_waits(client: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagemaker.core.resources import Endpoint, Model

    make(client("sagemaker"), "sdk")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    session = boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    assert Model.get(model_name="sdk", session=session).primary_container.model_data_url == "s3://b/k"
    endpoint = Endpoint.create(endpoint_name="sdk", endpoint_config_name="sdk", session=session)
    endpoint.wait_for_status("InService", poll=0, timeout=30)
    assert endpoint.endpoint_status == "InService"


def test_a_conditional_write_happens_once(client: Any) -> None:
    s3 = client("s3")
    s3.create_bucket(Bucket="conditional-writes")
    checksum = base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    put = {
        "Bucket": "conditional-writes",
        "Key": "k",
        "Body": b"x",
        "ChecksumSHA256": checksum,
        "IfNoneMatch": "*",
    }
    s3.put_object(**put)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(**put)
