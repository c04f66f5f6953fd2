"""push.sagemaker makes inference components: they share instances, scale to zero, and are taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploy_runner.errors import ConflictError, GateError, StageError
from tests.aws import calls, deploy, local_aws
from tests.pipeline.endpoints import client, drifted, rolled_back, served

pytestmark = pytest.mark.slow

SIZE = {"memory_mb": 1024, "cpus": 1.0, "min_instances": 0, "max_instances": 2}
SLEEPY: dict[str, Any] = {"component": SIZE, "autoscaling": {"min": 0, "max": 3, "target": 60}}


@pytest.fixture(autouse=True)
def aws(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path_factory.mktemp("aws") / "servers", monkeypatch) as url:
        yield url


def component() -> dict[str, Any]:
    """Return the component `e` as AWS describes it."""
    found: dict[str, Any] = client("sagemaker").describe_inference_component(InferenceComponentName="e")
    return found


def answer(x: float) -> float:
    """Ask the component `e`."""
    body = json.dumps({"inputs": {"x": [x]}})
    given = client("sagemaker-runtime").invoke_endpoint(
        EndpointName="e", InferenceComponentName="e", Body=body, ContentType="application/json"
    )
    (value,) = json.loads(given["Body"].read())["outputs"]["y"]
    return float(value)


def target() -> dict[str, Any] | None:
    found = client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    return next(iter(found["ScalableTargets"]), None)


def test_a_component_is_made_moved_compared_and_taken_back(tmp_path: Path) -> None:
    from sagemaker.core.resources import InferenceComponent

    first = deploy(tmp_path, 2, tested=2, startup_timeout_s=600, component=SIZE)
    assert calls(first)[-4:] == [
        "sagemaker:CreateEndpointConfig", "sagemaker:CreateEndpoint", "sagemaker:CreateInferenceComponent",
        "s3:PutObject",
    ]  # fmt: skip
    (variant,) = served()["ProductionVariants"]
    assert "ModelName" not in variant
    assert variant["ManagedInstanceScaling"] == {
        "Status": "ENABLED", "MinInstanceCount": 0, "MaxInstanceCount": 2
    }  # fmt: skip
    asked = component()["Specification"]
    assert asked["ComputeResourceRequirements"] == {
        "MinMemoryRequiredInMb": 1024, "NumberOfCpuCoresRequired": 1.0
    }  # fmt: skip
    assert asked["StartupParameters"] == {"ContainerStartupHealthCheckTimeoutInSeconds": 600}
    assert answer(10.0) == 20.0
    read = InferenceComponent.get(inference_component_name="e", region="us-east-1")
    assert read.specification.model_name == asked["ModelName"]
    assert calls(deploy(tmp_path, 2, tested=2, startup_timeout_s=600, component=SIZE)) == []
    assert drifted(tmp_path, 2, startup_timeout_s=600, component=SIZE) == {}
    wider = SIZE | {"memory_mb": 2048}
    assert drifted(tmp_path, 2, component=wider)["ComputeResourceRequirements"][1].count("1024") == 1
    update = deploy(tmp_path, 3, tested=3, component=wider)
    assert [c for c in calls(update) if "InferenceComponent" in c or "Endpoint" in c] == [
        "sagemaker:UpdateInferenceComponent"
    ]
    assert answer(10.0) == 30.0
    for factor, tested, said in ((4, 5, "rolled back: e serves e-"), ("four", None, "update .* has failed")):
        with pytest.raises(GateError, match=said):
            deploy(tmp_path, factor, tested=tested, component=wider)
        assert answer(10.0) == 30.0
    assert "instead of" in rolled_back(tmp_path, component=wider)
    assert answer(10.0) == 20.0
    assert component()["Specification"] == asked
    with pytest.raises(StageError, match="no package 00000000 was deployed to e"):
        rolled_back(tmp_path, to="00000000", component=wider)


def test_a_component_scales_to_zero_is_woken_and_stops_scaling(tmp_path: Path) -> None:
    deploy(tmp_path, 2, tested=2, **SLEEPY)
    found = target()
    assert found is not None
    assert (found["ResourceId"], found["MinCapacity"]) == ("inference-component/e", 0)
    (alarm,) = client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert (alarm["MetricName"], alarm["Dimensions"]) == (
        "NoCapacityInvocationFailures", [{"Name": "InferenceComponentName", "Value": "e"}],
    )  # fmt: skip
    assert drifted(tmp_path, 2, **SLEEPY) == {}
    client("sagemaker").update_inference_component_runtime_config(
        InferenceComponentName="e", DesiredRuntimeConfig={"CopyCount": 0}
    )
    with pytest.raises(ClientError, match="has no capacity"):
        answer(10.0)
    update = deploy(tmp_path, 3, tested=3, **SLEEPY)
    assert "sagemaker:UpdateInferenceComponentRuntimeConfig" in calls(update)
    assert answer(10.0) == 30.0
    deploy(tmp_path, 3, tested=3, component=SIZE)
    assert target() is None
    rolled_back(tmp_path, component=SIZE)
    assert target() is not None


def test_an_endpoint_does_not_change_its_kind_and_a_component_that_fails_is_removed(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="the component e failed to start and was removed"):
        deploy(tmp_path, "two", component=SIZE)
    with pytest.raises(ClientError, match="Could not find inference component"):
        component()
    with pytest.raises(ConflictError, match="the endpoint e hosts components, which no update changes"):
        deploy(tmp_path, 2)
    client("sagemaker").delete_endpoint(EndpointName="e")
    deploy(tmp_path, 2)
    with pytest.raises(ConflictError, match="the endpoint e serves a model of its own"):
        deploy(tmp_path, 2, component=SIZE)
