"""Autoscaling of an endpoint's variant, or of a component: a scalable target, and the policies that move it.

A target is no part of an endpoint config, so a config carries what it is to be as a tag, and the target
follows whichever config is in force: after an update, a refused one, and a rollback. Only what
deploy-runner has made is changed or removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from deploy_runner.sdk import ConflictError, Finding

from . import drift, objects
from .client import Aws
from .packed_model import TAG

__all__ = ["SCALING_TAG", "Autoscaling", "Configs", "Scaled", "Scaling"]

SCALING_TAG = f"{TAG}:autoscaling"
"""The tag of a config that says how it scales."""
_NAMESPACE = "sagemaker"
_POLICY = "deploy-runner"
_WAKE = "deploy-runner-wake"
_NONE = "none"
_GONE = "found for service namespace"
_SERVED = {
    "invocations": "SageMakerVariantInvocationsPerInstance",
    "copies": "SageMakerInferenceComponentInvocationsPerCopy",
}
_WAKES = {
    "backlog": ("HasBacklogWithoutCapacity", "Average", 2, 300),
    "copies": ("NoCapacityInvocationFailures", "Maximum", 1, 60),
}
"""What wakes a target at zero: a metric, its statistic, for how many minutes, and a cooldown in seconds.

https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html and
https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling-zero-instances.html
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How far and by what something scales.

    `metric` is "invocations" of a variant's instances, their "backlog" if asynchronous, or "copies": the
    invocations of a component's copies.

    Its text is a tag's value: letters, digits and `=.` alone.
    """

    min: int
    max: int
    metric: str
    target: float
    scale_in_cooldown_s: int
    scale_out_cooldown_s: int

    def __str__(self) -> str:
        return " ".join(f"{name}={getattr(self, name)}" for name in self.__slots__)

    @classmethod
    def read(cls, text: str) -> Scaling:
        """Return what a text of this form says."""
        said = dict(part.split("=", 1) for part in text.split())
        numbers = {
            name: int(said[name]) for name in ("min", "max", "scale_in_cooldown_s", "scale_out_cooldown_s")
        }
        return cls(metric=said["metric"], target=float(said["target"]), **numbers)


class Autoscaling:
    """The scalable target of an endpoint's variant, or of the component of this name where none is named."""

    def __init__(self, aws: Aws, *, name: str, variant: str | None) -> None:
        self._session = aws.session
        self._transcript = aws.transcript
        self._name = name
        self._metric_of = "InferenceComponentName" if variant is None else "EndpointName"
        self._resource = {
            "ServiceNamespace": _NAMESPACE,
            "ResourceId": f"endpoint/{name}/variant/{variant}" if variant else f"inference-component/{name}",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"
            if variant
            else "sagemaker:inference-component:DesiredCopyCount",
        }

    @cached_property
    def _client(self) -> Any:
        return self._session.client("application-autoscaling")

    @cached_property
    def _alarms(self) -> Any:
        return self._session.client("cloudwatch")

    def require_own(self) -> None:
        """Raise ConflictError where somebody else's policies move the target."""
        if others := self._others():
            raise ConflictError(
                f"the endpoint {self._name} has the scaling policy {', '.join(others)}, "
                "which was not made by deploy-runner",
                fix="delete it, or leave out `autoscaling`",
            )

    def _others(self) -> list[str]:
        return sorted(set(self._policies()) - {_POLICY, _WAKE})

    def apply(self, wanted: Scaling) -> None:
        """Register the target and put its policies, where they differ."""
        self.require_own()
        limits = {"MinCapacity": wanted.min, "MaxCapacity": wanted.max}
        if drift.differs(limits, self._target() or {}):
            self._client.register_scalable_target(**self._resource, **limits)
            self._note("RegisterScalableTarget", min=wanted.min, max=wanted.max)
        there = self._policies()
        tracking = self._tracking(wanted)
        if drift.differs(tracking, there.get(_POLICY, {})):
            self._client.put_scaling_policy(PolicyName=_POLICY, **self._resource, **tracking)
            self._note("PutScalingPolicy", policy=_POLICY, target=wanted.target)
        if wanted.min == 0:
            self._wake(wanted.metric, there.get(_WAKE, {}))
        elif _WAKE in there:
            self._stay_awake()

    def release(self) -> None:
        """Deregister the target, and its policies with it, unless somebody else's move it too."""
        there = self._policies()
        if _WAKE in there:
            self._stay_awake()
        if self._target() is not None and not self._others():
            objects.unless(lambda: self._client.deregister_scalable_target(**self._resource), _GONE)
            self._note("DeregisterScalableTarget")

    def finding(self, wanted: Scaling | None) -> Finding:
        """Return how it scales beside how it is to scale."""
        return Finding("autoscaling", str(wanted or _NONE), self._found())

    def _found(self) -> str:
        target, policy = self._target(), self._policies().get(_POLICY)
        if target is None or policy is None:
            return _NONE
        said = policy["TargetTrackingScalingPolicyConfiguration"]
        return str(Scaling(
            min=target["MinCapacity"], max=target["MaxCapacity"], target=said["TargetValue"],
            metric=_metric_in(said),
            scale_in_cooldown_s=said["ScaleInCooldown"], scale_out_cooldown_s=said["ScaleOutCooldown"],
        ))  # fmt: skip

    def _target(self) -> dict[str, Any] | None:
        found = self._client.describe_scalable_targets(
            ServiceNamespace=_NAMESPACE,
            ResourceIds=[self._resource["ResourceId"]],
            ScalableDimension=self._resource["ScalableDimension"],
        )["ScalableTargets"]
        return found[0] if found else None

    def _policies(self) -> dict[str, dict[str, Any]]:
        found = self._client.describe_scaling_policies(**self._resource)["ScalingPolicies"]
        return {policy["PolicyName"]: policy for policy in found}

    def _tracking(self, wanted: Scaling) -> dict[str, Any]:
        if wanted.metric in _SERVED:
            metric = {"PredefinedMetricSpecification": {"PredefinedMetricType": _SERVED[wanted.metric]}}
        else:
            metric = {"CustomizedMetricSpecification": self._metric("ApproximateBacklogSizePerInstance")
                      | {"Statistic": "Average"}}  # fmt: skip
        configuration = {
            "TargetValue": wanted.target, **metric,
            "ScaleInCooldown": wanted.scale_in_cooldown_s, "ScaleOutCooldown": wanted.scale_out_cooldown_s,
        }  # fmt: skip
        return {
            "PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": configuration
        }  # fmt: skip

    def _metric(self, name: str) -> dict[str, Any]:
        dimensions = [{"Name": self._metric_of, "Value": self._name}]
        return {"MetricName": name, "Namespace": "AWS/SageMaker", "Dimensions": dimensions}

    @property
    def _alarm(self) -> str:
        return f"deploy-runner-{self._name}-wake"

    def _wake(self, scaled_by: str, there: Mapping[str, Any]) -> None:
        """Add one where requests find none: the target alone waits for more of them, or for ever."""
        name, statistic, minutes, cooldown = _WAKES[scaled_by]
        step = {"AdjustmentType": "ChangeInCapacity", "MetricAggregationType": statistic,
                "Cooldown": cooldown,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}]}  # fmt: skip
        policy = {"PolicyType": "StepScaling", "StepScalingPolicyConfiguration": step}
        arn = there.get("PolicyARN")
        if drift.differs(policy, there):
            put = self._client.put_scaling_policy(PolicyName=_WAKE, **self._resource, **policy)
            arn = put["PolicyARN"]
            self._note("PutScalingPolicy", policy=_WAKE)
        alarm = {
            **self._metric(name), "Statistic": statistic, "Period": 60,
            "EvaluationPeriods": minutes, "DatapointsToAlarm": minutes, "Threshold": 1.0,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold", "TreatMissingData": "missing",
            "AlarmActions": [arn],
        }  # fmt: skip
        found = self._alarms.describe_alarms(AlarmNames=[self._alarm])["MetricAlarms"]
        if drift.differs(alarm, found[0] if found else {}):
            self._alarms.put_metric_alarm(AlarmName=self._alarm, **alarm)
            self._transcript.add("cloudwatch:PutMetricAlarm", name=self._alarm)

    def _stay_awake(self) -> None:
        self._alarms.delete_alarms(AlarmNames=[self._alarm])
        self._transcript.add("cloudwatch:DeleteAlarms", name=self._alarm)
        policy = {"PolicyName": _WAKE, **self._resource}
        objects.unless(lambda: self._client.delete_scaling_policy(**policy), _GONE)
        self._note("DeleteScalingPolicy", policy=_WAKE)

    def _note(self, call: str, **said: Any) -> None:
        self._transcript.add(f"application-autoscaling:{call}", name=self._name, **said)


class Configs(Protocol):
    """What may be in force: endpoint configs, or a component's models."""

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of the one of this name; none where it is gone."""

    def instance_type(self, name: str) -> str | None:
        """Return what it scales, where that is of one type."""


class Scaled:
    """A scalable target that follows what is in force; `known` says how some of `configs` scale."""

    def __init__(self, target: Autoscaling, configs: Configs, known: Mapping[str, Scaling | None]) -> None:
        self._target = target
        self._configs = configs
        self._known = known

    def require_own(self) -> None:
        """Raise ConflictError where somebody else's policies move the target."""
        self._target.require_own()

    def keeps(self, before: str, after: str) -> bool:
        """Say whether an update keeps what there is, and make the target ready for it.

        AWS refuses to change the type of instances that are scaled:
        https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling-update.html
        """
        if self._of(before) is None:
            return False
        wanted, type_of = self._of(after), self._configs.instance_type
        if wanted is None or type_of(before) != type_of(after):
            self._target.release()
        return wanted is not None

    def follow(self, config: str) -> None:
        """Let the target follow what is in force."""
        if (scaling := self._of(config)) is not None:
            self._target.apply(scaling)

    def findings(self, config: str, wanted: Scaling | None) -> list[Finding]:
        """Return how it scales beside how it is to scale, if it does or is to."""
        return [self._target.finding(wanted)] if wanted or self._of(config) else []

    def _of(self, config: str) -> Scaling | None:
        if config in self._known:
            return self._known[config]
        text = self._configs.tags(config).get(SCALING_TAG)
        return Scaling.read(text) if text else None


def _metric_in(policy: Mapping[str, Any]) -> str:
    """Return what a target tracking policy counts."""
    kind = policy.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
    return next((name for name, predefined in _SERVED.items() if predefined == kind), "backlog")
