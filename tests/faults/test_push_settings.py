"""Scalable targets and components through a network that breaks: right, and made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws import calls, deploy, local_aws
from tests.faults.proxy import Fault, FaultProxy, Kind
from tests.pipeline.endpoints import client, drifted

pytestmark = pytest.mark.slow

SCALED: dict[str, Any] = {"autoscaling": {"min": 1, "max": 4, "target": 600}}
SIZE: dict[str, Any] = {
    "component": {"memory_mb": 1024, "min_instances": 0, "max_instances": 2},
    "autoscaling": {"min": 0, "max": 3, "target": 60},
}
KINDS: tuple[Kind, ...] = (500, 429, "reset", "commit_then_reset", "truncated")


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with local_aws(tmp_path / "servers", monkeypatch) as url:
        yield url


def through(
    aws: str, monkeypatch: pytest.MonkeyPatch, kind: Kind, operations: tuple[str, ...], folder: Path,
    factor: float, **params: Any,
) -> None:  # fmt: skip
    """Push while the first request of each operation meets a fault."""
    faults = [Fault(kind, target=f"[.]{name}", delay_s=0.1) for name in operations]
    with FaultProxy(aws, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        deploy(folder, factor, **params)
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws)
        assert sum(request.fault is not None for request in proxy.requests) == len(operations)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_is_registered_and_deregistered_once(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    made = (
        "RegisterScalableTarget",
        "PutScalingPolicy",
        "DescribeScalableTargets",
        "DescribeScalingPolicies",
    )
    through(aws, monkeypatch, kind, made, tmp_path, 2, **SCALED)
    assert drifted(tmp_path, 2, **SCALED) == {}
    assert calls(deploy(tmp_path, 2, **SCALED)) == []
    through(aws, monkeypatch, kind, ("DeregisterScalableTarget", "UpdateEndpoint"), tmp_path, 2)
    scaling = client("application-autoscaling")
    assert scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []
    assert drifted(tmp_path, 2) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_is_made_and_updated_once(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    made = ("CreateInferenceComponent", "DescribeInferenceComponent", "PutMetricAlarm", "DescribeAlarms")
    through(aws, monkeypatch, kind, made, tmp_path, 2, tested=2, **SIZE)
    through(aws, monkeypatch, kind, ("UpdateInferenceComponent", "AddTags"), tmp_path, 3, tested=3, **SIZE)
    assert calls(deploy(tmp_path, 3, tested=3, **SIZE)) == []
    assert len(client("sagemaker").list_inference_components()["InferenceComponents"]) == 1
    assert drifted(tmp_path, 3, **SIZE) == {}
