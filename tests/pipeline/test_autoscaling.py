"""Endpoints that scale: the scalable target follows the config that is in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from deploy_runner.errors import ConflictError, GateError
from tests.aws import calls, deploy, local_aws
from tests.pipeline.endpoints import client, drifted, rolled_back, served

pytestmark = pytest.mark.slow

SCALED: dict[str, Any] = {"autoscaling": {"min": 1, "max": 4, "target": 600}}
RESOURCE: dict[str, Any] = {
    "ServiceNamespace": "sagemaker", "ResourceId": "endpoint/e/variant/main",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}  # fmt: skip
REGISTER = ["application-autoscaling:RegisterScalableTarget", "application-autoscaling:PutScalingPolicy"]
RELEASE = "application-autoscaling:DeregisterScalableTarget"
UPDATE = "sagemaker:UpdateEndpoint"
TEXT = "min=1 max=4 metric=invocations target=600.0 scale_in_cooldown_s=300 scale_out_cooldown_s=300"


@pytest.fixture(autouse=True)
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


def limits() -> tuple[int, int] | None:
    """Return the fewest and the most instances of the scalable target."""
    found = client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    return next(((t["MinCapacity"], t["MaxCapacity"]) for t in found["ScalableTargets"]), None)


def policies() -> dict[str, Any]:
    found = client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")
    return {policy["PolicyName"]: policy for policy in found["ScalingPolicies"]}


def instances() -> int:
    (variant,) = client("sagemaker").describe_endpoint(EndpointName="e")["ProductionVariants"]
    return int(variant["DesiredInstanceCount"])


def test_a_target_is_registered_kept_and_mended(tmp_path: Path) -> None:
    made = deploy(tmp_path, 2, **SCALED)
    assert calls(made)[-2:] == REGISTER
    assert limits() == (1, 4)
    said = policies()["deploy-runner"]["TargetTrackingScalingPolicyConfiguration"]
    assert said == {
        "TargetValue": 600.0, "ScaleInCooldown": 300, "ScaleOutCooldown": 300,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }  # fmt: skip
    assert calls(deploy(tmp_path, 2, **SCALED)) == []
    assert drifted(tmp_path, 2, **SCALED) == {}
    client("application-autoscaling").deregister_scalable_target(**RESOURCE)
    assert drifted(tmp_path, 2, **SCALED) == {"autoscaling": (TEXT, "none")}
    assert calls(deploy(tmp_path, 2, **SCALED)) == REGISTER
    assert limits() == (1, 4)


def test_the_target_follows_what_is_served_and_an_update_keeps_the_instances(tmp_path: Path) -> None:
    deploy(tmp_path, 2, **SCALED)
    capacity = {"VariantName": "main", "DesiredInstanceCount": 3}
    client("sagemaker").update_endpoint_weights_and_capacities(
        EndpointName="e", DesiredWeightsAndCapacities=[capacity]
    )
    update = deploy(tmp_path, 3, autoscaling={"min": 1, "max": 5, "target": 600})
    assert [c for c in calls(update) if c in (UPDATE, RELEASE, *REGISTER)] == [UPDATE, REGISTER[0]]
    assert (limits(), instances()) == ((1, 5), 3)
    with pytest.raises(GateError, match="rolled back: e serves"):
        deploy(tmp_path, 4, tested=5, autoscaling={"min": 1, "max": 9, "target": 600})
    assert (limits(), instances()) == ((1, 5), 3)
    other = deploy(tmp_path, 3, instance_type="ml.c5.large", **SCALED)
    assert calls(other)[-4:] == [RELEASE, UPDATE, *REGISTER]
    assert (limits(), instances()) == ((1, 4), 3)
    removed = deploy(tmp_path, 3, instance_type="ml.c5.large")
    assert calls(removed)[-2:] == [RELEASE, UPDATE]
    assert (limits(), policies(), instances()) == (None, {}, 1)
    assert drifted(tmp_path, 3, **SCALED, instance_type="ml.c5.large")["autoscaling"] == (TEXT, "none")
    rolled_back(tmp_path)
    assert limits() == (1, 4)
    assert drifted(tmp_path, 3, instance_type="ml.c5.large")["autoscaling"] == ("none", TEXT)


def test_what_somebody_else_scales_is_left_alone(tmp_path: Path) -> None:
    deploy(tmp_path, 2)
    scaling = client("application-autoscaling")
    scaling.register_scalable_target(**RESOURCE, MinCapacity=1, MaxCapacity=2)
    metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    scaling.put_scaling_policy(
        PolicyName="ours", PolicyType="TargetTrackingScaling", **RESOURCE,
        TargetTrackingScalingPolicyConfiguration={"TargetValue": 9.0, "PredefinedMetricSpecification": metric},
    )  # fmt: skip
    before = served()["EndpointConfigName"]
    with pytest.raises(ConflictError, match="scaling policy ours, which was not made by deploy-runner"):
        deploy(tmp_path, 3, **SCALED)
    assert served()["EndpointConfigName"] == before
    deploy(tmp_path, 3)
    assert (limits(), list(policies())) == ((1, 2), ["ours"])


def test_an_asynchronous_endpoint_scales_to_zero_and_is_woken(tmp_path: Path) -> None:
    given: dict[str, Any] = {"asynchronous": {}, "autoscaling": {"min": 0, "max": 2, "target": 5}}
    deploy(tmp_path, 2, tested=2, **given)
    assert limits() == (0, 2)
    found = policies()
    tracked = found["deploy-runner"]["TargetTrackingScalingPolicyConfiguration"]
    assert tracked["CustomizedMetricSpecification"]["MetricName"] == "ApproximateBacklogSizePerInstance"
    (alarm,) = client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert alarm["AlarmActions"] == [found["deploy-runner-wake"]["PolicyARN"]]
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    assert calls(deploy(tmp_path, 2, tested=2, **given)) == []
    deploy(tmp_path, 2, tested=2, **given | {"autoscaling": {"min": 1, "max": 2, "target": 5}})
    assert (limits(), list(policies())) == ((1, 2), ["deploy-runner"])
    assert client("cloudwatch").describe_alarms()["MetricAlarms"] == []
    client("sagemaker").delete_endpoint(EndpointName="e")
    assert limits() is None


def test_the_local_aws_refuses_what_aws_refuses_of_scaled_endpoints(tmp_path: Path) -> None:
    deploy(tmp_path, 2, **SCALED)
    scaling, sagemaker = client("application-autoscaling"), boto3.client("sagemaker", region_name="us-east-1")
    with pytest.raises(ClientError, match="Maximum capacity cannot be less than minimum"):
        scaling.register_scalable_target(**RESOURCE, MinCapacity=3, MaxCapacity=2)
    with pytest.raises(ClientError, match="Minimum capacity cannot be less than 1: 0"):
        scaling.register_scalable_target(**RESOURCE, MinCapacity=0, MaxCapacity=2)
    with pytest.raises(ClientError, match="not found: endpoint/nope/variant/main"):
        scaling.register_scalable_target(
            **RESOURCE | {"ResourceId": "endpoint/nope/variant/main"}, MinCapacity=1, MaxCapacity=2
        )
    (variant,) = served()["ProductionVariants"]
    sagemaker.create_endpoint_config(
        EndpointConfigName="other", ProductionVariants=[variant | {"InstanceType": "ml.c5.large"}]
    )
    with pytest.raises(ClientError, match="registered as a scalable target .*: deregister it first"):
        sagemaker.update_endpoint(EndpointName="e", EndpointConfigName="other")
    size = {"MemorySizeInMB": 1024, "MaxConcurrency": 1}
    del variant["InstanceType"], variant["InitialInstanceCount"]
    sagemaker.create_endpoint_config(
        EndpointConfigName="serverless", ProductionVariants=[variant | {"ServerlessConfig": size}]
    )
    with pytest.raises(ClientError, match="Cannot update an instance-based endpoint to a serverless"):
        sagemaker.update_endpoint(EndpointName="e", EndpointConfigName="serverless")
