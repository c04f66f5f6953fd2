"""The local AWS answers as AWS does where moto differs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError

from tests.aws import package


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


def make(sagemaker: Any, name: str, *, url: str = "s3://b/k", **config: Any) -> None:
    sagemaker.create_model(ModelName=name, ExecutionRoleArn="arn:aws:iam::123456789012:role/r",
                           PrimaryContainer={"Image": "i", "ModelDataUrl": url})  # fmt: skip
    variant = {
        "VariantName": "main",
        "ModelName": name,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **config)


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


def serving(client: Any, folder: Path, factor: float | str, name: str, **config: Any) -> None:
    """Put a package with this factor into S3, and name it by a model and an endpoint config."""
    s3 = client("s3")
    s3.create_bucket(Bucket="packages")
    s3.put_object(Bucket="packages", Key=name, Body=package(folder, factor).read_bytes())
    make(client("sagemaker"), name, url=f"s3://packages/{name}", **config)


def status(sagemaker: Any, *, until: str) -> dict[str, Any]:
    """Describe the endpoint `e` until it has this status."""
    while True:
        described: dict[str, Any] = sagemaker.describe_endpoint(EndpointName="e")
        if described["EndpointStatus"] == until:
            return described
        assert described["EndpointStatus"] in ("Creating", "Updating", "RollingBack")


def ask(client: Any, body: str = '{"inputs": {"x": [10]}}', kind: str = "application/json") -> Any:
    given = client("sagemaker-runtime").invoke_endpoint(EndpointName="e", Body=body, ContentType=kind)
    return json.loads(given["Body"].read())


def ask_npy(client: Any, array: Any) -> Any:
    np.save(body := io.BytesIO(), array)
    kind = "application/x-npy"
    given = client("sagemaker-runtime").invoke_endpoint(
        EndpointName="e", Body=body.getvalue(), ContentType=kind, Accept=kind
    )
    return np.load(io.BytesIO(given["Body"].read()))


@pytest.fixture
def endpoint(client: Any, tmp_path: Path) -> Iterator[Any]:
    """The endpoint `e` with the config `old`, whose model doubles."""
    sagemaker = client("sagemaker")
    serving(client, tmp_path, 2, "old")
    sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="old")
    assert sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] in ("Creating", "InService")
    status(sagemaker, until="InService")
    yield sagemaker
    sagemaker.delete_endpoint(EndpointName="e")
    for name in ("old", "new"):
        sagemaker.delete_endpoint_config(EndpointConfigName=name)
        sagemaker.delete_model(ModelName=name)


def test_an_endpoint_answers_by_its_package_and_keeps_the_old_one_until_the_new_is_ready(
    client: Any, endpoint: Any, tmp_path: Path
) -> None:
    assert ask(client) == {"outputs": {"y": [20.0]}}
    assert ask_npy(client, np.asarray([-1e30, 0.5])).tolist() == [-2e30, 1.0]
    serving(client, tmp_path, 3, "new")
    endpoint.update_endpoint(EndpointName="e", EndpointConfigName="new")
    described = endpoint.describe_endpoint(EndpointName="e")
    if described["EndpointStatus"] == "Updating":
        assert described["EndpointConfigName"] == "old"
        assert described["PendingDeploymentSummary"] == {"EndpointConfigName": "new"}
    assert status(endpoint, until="InService")["EndpointConfigName"] == "new"
    assert ask(client) == {"outputs": {"y": [30.0]}}
    with pytest.raises(ClientError, match="an endpoint uses it"):
        endpoint.delete_endpoint_config(EndpointConfigName="new")
    with pytest.raises(ClientError, match="it already uses"):
        endpoint.update_endpoint(EndpointName="e", EndpointConfigName="new")


def test_a_container_that_does_not_start_rolls_the_update_back(
    client: Any, endpoint: Any, tmp_path: Path
) -> None:
    serving(client, tmp_path, "three", "new")
    endpoint.update_endpoint(EndpointName="e", EndpointConfigName="new")
    assert status(endpoint, until="InService")["EndpointConfigName"] == "old"
    assert ask(client) == {"outputs": {"y": [20.0]}}


def test_a_handler_that_raises_is_a_model_error(client: Any, endpoint: Any, tmp_path: Path) -> None:
    serving(client, tmp_path, 3, "new")
    with pytest.raises(ClientError, match=r"ModelError.*server error \(500\) .*KeyError: 'x'"):
        ask(client, '{"inputs": {}}')
    with pytest.raises(ClientError, match="Endpoint nope of account"):
        client("sagemaker-runtime").invoke_endpoint(EndpointName="nope", Body="{}")


def test_a_transform_job_answers_every_object(client: Any, tmp_path: Path) -> None:
    serving(client, tmp_path, 2, "batch")
    s3, sagemaker = client("s3"), client("sagemaker")
    for index in range(2):
        s3.put_object(Bucket="packages", Key=f"in/{index}.json", Body=json.dumps({"inputs": {"x": [index]}}))
    job = {
        "TransformJobName": "j", "ModelName": "batch",
        "TransformInput": {"ContentType": "application/json", "DataSource": {
            "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://packages/in/"}}},
        "TransformOutput": {"S3OutputPath": "s3://packages/out"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
    }  # fmt: skip
    sagemaker.create_transform_job(**job)
    while (state := sagemaker.describe_transform_job(TransformJobName="j"))[
        "TransformJobStatus"
    ] != "Completed":
        assert state["TransformJobStatus"] == "InProgress", state
    said = [
        json.loads(s3.get_object(Bucket="packages", Key=f"out/{i}.json.out")["Body"].read()) for i in range(2)
    ]
    assert said == [{"outputs": {"y": [0.0]}}, {"outputs": {"y": [2.0]}}]
    with pytest.raises(ClientError, match="Job name must be unique"):
        sagemaker.create_transform_job(**job)


def test_a_version_is_made_once_for_a_token_and_keeps_its_properties(client: Any) -> None:
    sagemaker = client("sagemaker")
    sagemaker.create_model_package_group(ModelPackageGroupName="g")
    given = {
        "ModelPackageGroupName": "g", "ClientToken": "t", "ModelApprovalStatus": "PendingManualApproval",
        "CustomerMetadataProperties": {"digest": "d"},
    }  # fmt: skip
    arns = {sagemaker.create_model_package(**given)["ModelPackageArn"] for _ in range(2)}
    (arn,) = arns
    sagemaker.update_model_package(ModelPackageArn=arn, ModelApprovalStatus="Approved")
    described = sagemaker.describe_model_package(ModelPackageName=arn)
    assert described["ModelApprovalStatus"] == "Approved"
    assert described["CustomerMetadataProperties"] == {"digest": "d"}


def test_the_sdk_reads_a_model(client: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sagemaker.core.resources import Model

    make(client("sagemaker"), "sdk")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    session = boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    assert Model.get(model_name="sdk", session=session).primary_container.model_data_url == "s3://b/k"


def test_bytes_that_are_not_those_of_the_checksum_are_refused(client: Any) -> None:
    s3 = client("s3")
    s3.create_bucket(Bucket="checked")
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    with pytest.raises(ClientError, match="BadDigest"):
        s3.put_object(Bucket="checked", Key="k", Body=b"x", ChecksumSHA256=wrong)


def test_a_head_says_of_how_many_parts_a_checksum_is(client: Any) -> None:
    s3 = client("s3")
    s3.create_bucket(Bucket="parts")
    place = {"Bucket": "parts", "Key": "k"}
    begun = s3.create_multipart_upload(**place, ChecksumAlgorithm="SHA256")["UploadId"]
    sent = s3.upload_part(**place, UploadId=begun, PartNumber=1, Body=b"x", ChecksumAlgorithm="SHA256")
    parts = [{"PartNumber": 1, "ETag": sent["ETag"], "ChecksumSHA256": sent["ChecksumSHA256"]}]
    s3.complete_multipart_upload(**place, UploadId=begun, MultipartUpload={"Parts": parts})
    one = hashlib.sha256(hashlib.sha256(b"x").digest()).digest()
    found = s3.head_object(**place, ChecksumMode="ENABLED")["ChecksumSHA256"]
    assert found == f"{base64.b64encode(one).decode()}-1"


@pytest.mark.parametrize("name", ["Models", "a..b", "-ab", "192.168.1.1", "under_score", "xn--b"])
def test_a_bucket_of_a_name_that_s3_refuses_is_refused(client: Any, name: str) -> None:
    with pytest.raises(ClientError, match="InvalidBucketName"):
        client("s3").create_bucket(Bucket=name)


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
