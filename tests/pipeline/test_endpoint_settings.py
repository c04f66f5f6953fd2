"""The settings of an endpoint: judged before AWS is asked, made, compared, changed and taken back."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.session import get_session
from pydantic import ValidationError

from deploy_runner.errors import GateError, StageError
from tests.aws import TARGET, answer, calls, deploy, local_aws, package
from tests.bundles import stage
from tests.pipeline.endpoints import client, drifted, rolled_back, served

KEY = "arn:aws:kms:us-east-1:123456789012:key/k"
FOLDER = "s3://dry-run-models/models/e"
FULL: dict[str, Any] = {
    "startup_timeout_s": 600, "download_timeout_s": 1200, "volume_gb": 100,
    "instance_type": "ml.g5.xlarge", "inference_ami": "al2-ami-sagemaker-inference-gpu-3-1",
    "vpc": {"security_groups": ["sg-2", "sg-1"], "subnets": ["subnet-1"]},
    "network_isolation": True, "kms_key": KEY, "capture": {"percent": 20, "of": "requests"},
}  # fmt: skip


@pytest.fixture
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


@pytest.mark.usefixtures("aws")
def test_settings_are_made_and_compared(tmp_path: Path) -> None:
    deploy(tmp_path, 2, **FULL)
    config = served()
    (variant,) = config["ProductionVariants"]
    model = client("sagemaker").describe_model(ModelName=variant["ModelName"])
    assert variant | {"VariantName": "", "ModelName": ""} == {
        "VariantName": "", "ModelName": "", "InitialVariantWeight": 1.0, "InitialInstanceCount": 1,
        "InstanceType": "ml.g5.xlarge", "InferenceAmiVersion": "al2-ami-sagemaker-inference-gpu-3-1",
        "ContainerStartupHealthCheckTimeoutInSeconds": 600, "ModelDataDownloadTimeoutInSeconds": 1200,
        "VolumeSizeInGB": 100,
    }  # fmt: skip
    assert config["KmsKeyId"] == KEY
    assert config["DataCaptureConfig"] == {
        "EnableCapture": True, "InitialSamplingPercentage": 20, "DestinationS3Uri": f"{FOLDER}/capture",
        "CaptureOptions": [{"CaptureMode": "Input"}], "KmsKeyId": KEY,
    }  # fmt: skip
    assert model["VpcConfig"] == {"SecurityGroupIds": ["sg-1", "sg-2"], "Subnets": ["subnet-1"]}
    assert model["EnableNetworkIsolation"] is True
    assert drifted(tmp_path, 2, **FULL) == {}
    other_order = {"vpc": {"security_groups": ["sg-1", "sg-2"], "subnets": ["subnet-1"]}}
    assert calls(deploy(tmp_path, 2, **FULL | other_order)) == []


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_settings_are_changed_removed_and_taken_back(tmp_path: Path) -> None:
    deploy(tmp_path, 2, **FULL)
    found = drifted(tmp_path, 2, **FULL | {"volume_gb": 50, "capture": None, "vpc": None})
    assert found["VolumeSizeInGB"] == ("50", "100")
    assert found["DataCaptureConfig"][0] == found["VpcConfig"][0] == "none"
    assert "sg-1" in found["VpcConfig"][1]
    assert "KmsKeyId" not in found
    changed = deploy(tmp_path, 2, **FULL | {"volume_gb": 50, "capture": None})
    assert calls(changed) == ["sagemaker:CreateEndpointConfig", "sagemaker:UpdateEndpoint"]
    assert "DataCaptureConfig" not in served()
    deploy(tmp_path, 2)
    (variant,) = served()["ProductionVariants"]
    assert set(variant) == {
        "VariantName", "ModelName", "InitialVariantWeight", "InitialInstanceCount", "InstanceType",
    }  # fmt: skip
    assert "e serves" in rolled_back(tmp_path, **FULL)
    assert served()["ProductionVariants"][0]["VolumeSizeInGB"] == 50
    assert answer(10.0) == 20.0


@pytest.mark.usefixtures("aws")
def test_an_endpoint_without_settings_keeps_the_names_that_it_had_before_there_were_any(
    tmp_path: Path,
) -> None:
    made = deploy(tmp_path, 2)
    url = f"{FOLDER}/{made.figures['package_sha256']}/model.tar.gz"
    environment = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": url}
    aws = TARGET["aws"]
    model = digest_name("model", url, aws["image_uri"], aws["role_arn"], environment)
    assert made.figures["model"] == model
    variant = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    assert made.figures["endpoint_config"] == digest_name("config", model, variant, {})


def digest_name(*parts: Any) -> str:
    return f"e-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_a_serverless_endpoint_is_kept_warm_and_stays_serverless(tmp_path: Path) -> None:
    size = {"memory_mb": 1024, "max_concurrency": 3, "provisioned_concurrency": 2}
    deploy(tmp_path, 2, tested=2, serverless=size)
    assert served()["ProductionVariants"][0]["ServerlessConfig"]["ProvisionedConcurrency"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_an_asynchronous_endpoint_tells_topics(tmp_path: Path) -> None:
    topic = "arn:aws:sns:us-east-1:123456789012:done"
    given: dict[str, Any] = {"asynchronous": {"success_topic": topic}, "kms_key": KEY}
    deploy(tmp_path, 2, tested=2, **given)
    assert served()["AsyncInferenceConfig"]["OutputConfig"] == {
        "S3OutputPath": f"{FOLDER}/async", "KmsKeyId": KEY, "NotificationConfig": {"SuccessTopic": topic}
    }  # fmt: skip
    assert drifted(tmp_path, 2, **given) == {}


def captured() -> dict[str, list[float]]:
    """Return the first value of each captured response, by variant."""
    s3 = client("s3")
    rows = s3.list_objects_v2(Bucket="dry-run-models", Prefix="models/e/capture/")["Contents"]
    found: dict[str, list[float]] = {}
    for key in (row["Key"] for row in rows):
        line = json.loads(s3.get_object(Bucket="dry-run-models", Key=key)["Body"].read())
        said = json.loads(base64.b64decode(line["captureData"]["endpointOutput"]["data"]))
        found.setdefault(key.split("/")[4], []).append(said["outputs"]["y"][0])
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("aws")
def test_a_shadow_is_sent_its_share_of_the_requests_and_answers_nobody(tmp_path: Path) -> None:
    (tmp_path / "tried").mkdir()
    inputs = {"shadow": package(tmp_path / "tried", 7)}
    given: dict[str, Any] = {"inputs": inputs, "shadow": {"percent": 25}, "capture": {}}
    made = deploy(tmp_path, 2, **given)
    assert calls(made).count("sagemaker:CreateModel") == 2
    assert [answer(10.0) for _ in range(8)] == [20.0] * 8
    assert captured() == {"main": [20.0] * 8, "shadow": [70.0] * 2}
    (variant,) = served()["ShadowProductionVariants"]
    assert (variant["InitialVariantWeight"], variant["InstanceType"]) == (0.25, "ml.m5.large")
    assert calls(deploy(tmp_path, 2, **given)) == []
    wanted, found = drifted(tmp_path, 2, capture={})["ShadowProductionVariants"]
    assert (wanted, variant["ModelName"] in found) == ("none", True)
    with pytest.raises(StageError, match="a shadow needs both a package and its share"):
        deploy(tmp_path, 2, inputs=inputs)
    deploy(tmp_path, 2)
    assert "ShadowProductionVariants" not in served()
    broken = {"shadow": package(tmp_path / "tried", "seven")}
    with pytest.raises(GateError, match="AWS rolled back the update of e"):
        deploy(tmp_path, 3, inputs=broken, shadow={})
    assert answer(10.0) == 20.0


def test_the_ranges_are_those_of_awss_own_model() -> None:
    from deploy_runner.stages.push.aws.limits import RANGES

    model = get_session().get_service_model("sagemaker")
    for name, (shape, member, least, most) in RANGES.items():
        found = model.shape_for(shape).members[member].metadata
        assert (found["min"], found["max"]) == (least, most), name


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"startup_timeout_s": 59}, "greater than or equal to 60"),
        ({"download_timeout_s": 3601}, "less than or equal to 3600"),
        ({"volume_gb": 513}, "less than or equal to 512"),
        ({"vpc": {"security_groups": ["sg"] * 6, "subnets": ["s"]}}, "at most 5 items"),
        ({"vpc": {"security_groups": ["sg_1"], "subnets": ["s"]}}, "should match pattern"),
        ({"vpc": {"security_groups": ["sg-1"], "subnets": []}}, "at least 1 item"),
        ({"kms_key": "my key"}, "should match pattern"),
        ({"instance_type": "m5.large"}, "should match pattern"),
        ({"inference_ami": "al2-ami-sagemaker-inference-gpu-3-1"}, "for instances with gpu, not ml.m5.large"),
        ({"inference_ami": "al2-ami-sagemaker-inference-neuron-2", "instance_type": "ml.g5.xlarge"},
         "for instances with neuron"),
        ({"capture": {"percent": 101}}, "less than or equal to 100"),
        ({"serverless": {"provisioned_concurrency": 6}}, "at most `max_concurrency`, 5"),
        ({"serverless": {}, "vpc": {"security_groups": ["a"], "subnets": ["b"]}, "capture": {}},
         "a `serverless` endpoint has no `vpc`, `capture`: https://docs.aws.amazon.com/"),
        ({"serverless": {}, "network_isolation": True}, "has no `network_isolation`"),
        ({"serverless": {}, "volume_gb": 5}, "has no `volume_gb`"),
        ({"serverless": {}, "instance_type": "ml.g5.xlarge"}, "has no GPU"),
        ({"serverless": {}, "autoscaling": {"min": 1, "max": 2, "target": 1}}, "has no `autoscaling`"),
        ({"asynchronous": {}, "shadow": {}}, "a `shadow` endpoint has no `asynchronous`"),
        ({"instance_type": "ml.inf1.xlarge", "shadow": {}}, "can't be tried on ml.inf1.xlarge"),
        ({"asynchronous": {"error_topic": "done"}}, "should match pattern"),
        ({"autoscaling": {"min": 3, "max": 2, "target": 1}}, "`min` 3 is above `max` 2"),
        ({"autoscaling": {"min": 0, "max": 2, "target": 1}}, "needs `asynchronous`"),
        ({"autoscaling": {"min": 2, "max": 3, "target": 1}}, "`instance_count: 1` is not within"),
        ({"autoscaling": {"min": 1, "max": 3, "target": 0}}, "greater than 0"),
    ],
)  # fmt: skip
def test_what_aws_would_refuse_is_refused_before_it_is_asked(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        stage("push.sagemaker").Params.model_validate({"endpoint": "e", **params})
