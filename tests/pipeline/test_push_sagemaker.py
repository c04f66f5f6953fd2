"""push.sagemaker against the local AWS, whose endpoints run the package's own code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import ValidationError

from deploy_runner.errors import ConflictError, GateError, StageError
from deploy_runner.testing import run_stage
from tests.aws import TARGET, answer, calls, deploy, local_aws, package, rolled_back, smoke
from tests.bundles import stage
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


def client(service: str) -> Any:
    return boto3.client(service, region_name="us-east-1")


def serves() -> str:
    return str(client("sagemaker").describe_endpoint(EndpointName="e")["EndpointConfigName"])


def test_a_push_converges_and_an_update_moves_the_endpoint_last(tmp_path: Path) -> None:
    first = deploy(tmp_path, 2, tested=2)
    assert calls(first) == [
        "s3:CreateBucket", "s3:PutObject", "sagemaker:CreateModel", "sagemaker:CreateEndpointConfig",
        "sagemaker:CreateEndpoint", "s3:PutObject",
    ]  # fmt: skip
    assert answer(10.0) == 20.0
    assert first.figures["smoke_samples"] == 2
    again = deploy(tmp_path, 2, tested=2)
    assert calls(again) == []
    assert again.context.converged
    update = deploy(tmp_path, 3, tested=3)
    assert calls(update) == [
        "s3:PutObject", "sagemaker:CreateModel", "sagemaker:CreateEndpointConfig", "sagemaker:UpdateEndpoint",
        "s3:PutObject",
    ]  # fmt: skip
    assert answer(10.0) == 30.0
    assert calls(deploy(tmp_path, 2, tested=2)) == ["sagemaker:UpdateEndpoint"]
    assert answer(10.0) == 20.0


CPU_IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/ray:serve-ml-sagemaker-cpu-v1"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"instance_type": "ml.g5.xlarge", "image_uri": CPU_IMAGE}, "cpu-v1 has no CUDA"),
        ({}, "`instance_type: ml.m5.large` has none"),
        ({"serverless": {"max_concurrency": 1}}, "a `serverless` endpoint has none"),
    ],
)
def test_a_package_for_a_gpu_goes_where_one_is(tmp_path: Path, params: dict[str, Any], said: str) -> None:
    given = {"package": package(tmp_path, 2, device="cuda")}
    with pytest.raises(StageError, match=f"the package runs on a GPU, and .*{said}"):
        deploy(tmp_path, 2, inputs=given, **params)
    if "serverless" not in params:
        job: dict[str, Any] = {
            "params": {"job": "j", **params},
            "inputs": {**given, "data": tmp_path},
            "target": TARGET,
        }
        with pytest.raises(StageError, match=f"the package runs on a GPU, and .*{said}"):
            run_stage(stage("push.transform"), tmp_path / "job", **job)
    assert client("sagemaker").list_models()["Models"] == []
    deploy(tmp_path, 2, inputs=given, instance_type="ml.g5.xlarge")


def test_a_container_that_does_not_start_leaves_what_was_served(tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match="the endpoint e failed to start and was removed: .*ping health check"
    ):
        deploy(tmp_path, "two")
    assert client("sagemaker").list_endpoints()["Endpoints"] == []
    deploy(tmp_path, 2)
    with pytest.raises(GateError, match="AWS rolled back the update of e: .* it serves e-"):
        deploy(tmp_path, "three")
    assert answer(10.0) == 20.0


def test_wrong_answers_bring_back_what_was_served(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"smoke test failed: .* up to 5,.* the new endpoint e was removed"):
        deploy(tmp_path, 2, tested=3)
    assert client("sagemaker").list_endpoints()["Endpoints"] == []
    deploy(tmp_path, 2, tested=2)
    before = serves()
    with pytest.raises(GateError, match=f"smoke test failed: .*; rolled back: e serves {before} again"):
        deploy(tmp_path, 3, tested=4)
    assert (serves(), answer(10.0)) == (before, 20.0)
    with pytest.raises(
        GateError, match="the smoke test failed: the container responded with 500: KeyError: 'x'"
    ):
        run_stage(
            stage("push.sagemaker"), tmp_path / "odd", params={"endpoint": "e"}, target=TARGET,
            inputs={"package": package(tmp_path, 5), "smoke": odd_smoke(tmp_path)},
        )  # fmt: skip
    assert serves() == before


def odd_smoke(folder: Path) -> Path:
    from deploy_runner.stages.model import bundles

    (case,) = bundles.read_cases(smoke(folder, 2))
    bundles.write_cases(folder / "odd.npz", [bundles.Case("odd", {"z": case.inputs["x"]}, case.outputs)])
    return folder / "odd.npz"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "tested", "said"),
    [
        (4, 5, "the smoke test failed: .*; rolled back: e serves"),
        ("four", None, "AWS rolled back the update"),
    ],
)
def test_a_rollback_never_goes_back_to_what_was_refused(
    tmp_path: Path, factor: Any, tested: float | None, said: str
) -> None:
    deploy(tmp_path, 2, tested=2)
    first = serves()
    deploy(tmp_path, 3, tested=3)
    with pytest.raises(GateError, match=said):
        deploy(tmp_path, factor, tested=tested)
    assert answer(10.0) == 30.0
    assert f"e serves {first}" in rolled_back(tmp_path)
    assert answer(10.0) == 20.0


@pytest.mark.slow
def test_after_a_first_release_that_was_followed_by_a_refused_one_nothing_is_before_it(
    tmp_path: Path,
) -> None:
    deploy(tmp_path, 2, tested=2)
    with pytest.raises(GateError, match="rolled back: e serves"):
        deploy(tmp_path, 4, tested=5)
    with pytest.raises(StageError, match="nothing was deployed to e before"):
        rolled_back(tmp_path)
    assert answer(10.0) == 20.0


def test_a_canary_without_an_alarm_is_refused() -> None:
    params = stage("push.sagemaker").Params
    for strategy in ("canary", "linear"):
        with pytest.raises(
            ValidationError, match=f"only an alarm can roll back a {strategy} update: add one to `alarms`"
        ):
            params.model_validate({"endpoint": "e", "update": {"strategy": strategy}})


@pytest.mark.parametrize("strategy", ["canary", "linear"])
def test_an_alarm_rolls_a_shifting_update_back(tmp_path: Path, strategy: str) -> None:
    update = {"strategy": strategy, "percent": 25, "interval_s": 0, "alarms": ["errors"]}
    deploy(tmp_path, 2, update=update)
    deploy(tmp_path, 3, update=update)
    assert answer(10.0) == 30.0
    alarms = client("cloudwatch")
    alarms.put_metric_alarm(AlarmName="errors", MetricName="Invocation5XXErrors", Namespace="AWS/SageMaker",
                            Period=60, EvaluationPeriods=1, Statistic="Sum", Threshold=1.0,
                            ComparisonOperator="GreaterThanThreshold")  # fmt: skip
    alarms.set_alarm_state(AlarmName="errors", StateValue="ALARM", StateReason="for the test")
    with pytest.raises(GateError, match="AWS rolled back the update of e"):
        deploy(tmp_path, 4, update=update)
    assert answer(10.0) == 30.0


def test_a_serverless_endpoint_has_no_instances(tmp_path: Path) -> None:
    deploy(tmp_path, 2, tested=2, serverless={"memory_mb": 1024, "max_concurrency": 3})
    (variant,) = client("sagemaker").describe_endpoint_config(EndpointConfigName=serves())[
        "ProductionVariants"
    ]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 1024, "MaxConcurrency": 3}
    assert "InstanceType" not in variant
    assert answer(10.0) == 20.0


def test_an_asynchronous_endpoint_answers_through_s3(tmp_path: Path) -> None:
    made = deploy(tmp_path, 2, tested=2, asynchronous={"max_concurrency": 4})
    assert made.figures["smoke_samples"] == 2
    config = client("sagemaker").describe_endpoint_config(EndpointConfigName=serves())["AsyncInferenceConfig"]
    assert config["OutputConfig"]["S3OutputPath"] == "s3://dry-run-models/models/e/async"
    with pytest.raises(GateError, match="the smoke test failed: the answers differ"):
        deploy(tmp_path, 3, tested=4, asynchronous={})
    with pytest.raises(ValidationError, match="a `serverless` endpoint has no `asynchronous`"):
        deploy(tmp_path, 3, asynchronous={}, serverless={})


def test_a_package_is_registered_once_with_its_figures(tmp_path: Path) -> None:
    report = tmp_path / "accuracy.json"
    report.write_text(json.dumps({"accuracy": 98.5, "drop": 0.25, "samples": 540}))
    more: dict[str, Any] = {"registry": {"group": "digits"}, "inputs": {"reports": {"int8": report}}}
    first = deploy(tmp_path, 2, **more)
    assert [c for c in calls(first) if "ModelPackage" in c] == [
        "sagemaker:CreateModelPackageGroup", "sagemaker:CreateModelPackage",
    ]  # fmt: skip
    assert calls(deploy(tmp_path, 2, **more)) == []
    deploy(tmp_path, 3, **more)
    sagemaker = client("sagemaker")
    rows = sagemaker.list_model_packages(ModelPackageGroupName="digits", SortBy="CreationTime")
    assert [row["ModelPackageVersion"] for row in rows["ModelPackageSummaryList"]] == [1, 2]
    version = sagemaker.describe_model_package(
        ModelPackageName=rows["ModelPackageSummaryList"][0]["ModelPackageArn"]
    )
    assert version["ModelApprovalStatus"] == "PendingManualApproval"
    assert version["CustomerMetadataProperties"]["int8.accuracy"] == "98.5"
    bucket, _, key = version["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"][5:].partition("/")
    body = client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    assert json.loads(body)["int8"]["samples"] == 540


def test_names_carry_digest_run_and_commit_as_tags(tmp_path: Path) -> None:
    made = run_stage(
        stage("push.sagemaker"), tmp_path / "a", inputs={"package": package(tmp_path, 2)},
        params={"endpoint": "e"}, target=TARGET, run="20261124T1", commit="abc123",
    )  # fmt: skip
    sagemaker = client("sagemaker")
    for kind, name in (("model", made.figures["model"]), ("endpoint-config", made.figures["endpoint_config"]),
                       ("endpoint", "e")):  # fmt: skip
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:{kind}/{name}"
        tags = {tag["Key"]: tag["Value"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
        assert tags["deploy-runner:digest"] == made.figures["package_sha256"]
        assert (tags["deploy-runner:run"], tags["deploy-runner:commit"]) == ("20261124T1", "abc123")


def test_an_endpoint_of_somebody_else_is_a_conflict_unless_adopted(tmp_path: Path) -> None:
    made = deploy(tmp_path, 2)
    sagemaker = client("sagemaker")
    sagemaker.delete_endpoint(EndpointName="e")
    sagemaker.create_endpoint(EndpointName="e", EndpointConfigName=made.figures["endpoint_config"])
    with pytest.raises(
        ConflictError, match="the endpoint e already exists and was not created by deploy-runner"
    ):
        deploy(tmp_path, 3)
    deploy(tmp_path, 3, adopt=True)
    assert answer(10.0) == 30.0


def test_an_object_that_is_something_else_is_a_conflict(tmp_path: Path) -> None:
    made = deploy(tmp_path, 2)
    uri = json.loads(made["transcript"].read_text())["package"]
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    client("s3").put_object(Bucket=bucket, Key=key, Body=b"evil", ChecksumAlgorithm="SHA256")
    with pytest.raises(ConflictError, match="has different content"):
        deploy(tmp_path, 2)


def test_what_is_not_set_and_what_is_refused_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the bucket other-bucket does not exist"):
        run_stage(stage("push.sagemaker"), tmp_path / "a", inputs={"package": ROOT / "README.md"},
                  params={"endpoint": "e", "bucket": "other-bucket"},
                  target={"aws": {**TARGET["aws"], "create_bucket": False}})  # fmt: skip
    with pytest.raises(StageError, match="role_arn is not set"):
        run_stage(stage("push.sagemaker"), tmp_path / "b", inputs={"package": ROOT / "README.md"},
                  params={"endpoint": "e", "bucket": "bbb"}, target={"aws": {"region": "us-east-1"}})  # fmt: skip


def test_without_credentials_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_") and "METADATA" not in n]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StageError, match="no AWS credentials were found"):
        deploy(tmp_path, 2)
