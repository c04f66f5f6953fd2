"""Autoscaling of endpoints: what a scalable target needs, and what an update does to it.

moto registers a target for an endpoint that does not exist, keeps its policies when it goes, and knows
nothing of it when the endpoint is updated or deleted.
"""

from __future__ import annotations

from typing import Any

__all__ = ["COPIES", "INSTANCES", "check_targets", "forget_targets", "is_scaled"]

COPIES = "sagemaker:inference-component:DesiredCopyCount"
INSTANCES = "sagemaker:variant:DesiredInstanceCount"
_SERVICE = "sagemaker"


def check_targets(backend: Any) -> None:
    """Patch moto's backend of Application Auto Scaling."""
    _know_copies()
    _check_register(backend)
    _forget_policies(backend)


def _know_copies() -> None:
    """moto's list of what scales lacks the copies of components."""
    from enum import Enum

    from moto.applicationautoscaling import models, responses

    known = {dimension.name: dimension.value for dimension in models.ScalableDimensionValueSet}
    more = Enum("ScalableDimensionValueSet", known | {"COPIES": COPIES})  # type: ignore[misc]
    for module in (models, responses):
        setattr(module, "ScalableDimensionValueSet", more)  # noqa: B010


def _check_register(backend: Any) -> None:
    from moto.applicationautoscaling.exceptions import AWSValidationException

    register, put = backend.register_scalable_target, backend.put_scaling_policy

    def register_scalable_target(self: Any, namespace: str, r_id: str, dimension: str, **more: Any) -> Any:
        if dimension == INSTANCES and (reason := _refusal(self, r_id, more)):
            raise AWSValidationException(reason)
        return register(self, namespace, r_id, dimension, **more)

    def put_scaling_policy(self: Any, **given: Any) -> Any:
        if not self._scalable_target_exists(given["resource_id"], given["scalable_dimension"]):
            raise AWSValidationException(
                f"No scalable target found for service namespace: {given['service_namespace']}, resource ID: "
                f"{given['resource_id']}, scalable dimension: {given['scalable_dimension']}"
            )
        return put(self, **given)

    backend.register_scalable_target = register_scalable_target
    backend.put_scaling_policy = put_scaling_policy


def _refusal(backend: Any, resource: str, given: dict[str, Any]) -> str:
    from moto.sagemaker.models import sagemaker_backends

    _, name, _, variant = resource.split("/")
    known: Any = sagemaker_backends[backend.account_id][backend.region_name].endpoints
    endpoint = known.get(name)
    if endpoint is None or variant not in [v["VariantName"] for v in endpoint.production_variants]:
        return f"Endpoint variant not found: {resource}"
    if endpoint.endpoint_status != "InService":
        return f"The endpoint {name} is {endpoint.endpoint_status}, not InService"
    least, most = given["min_capacity"], given["max_capacity"]
    if least > most:
        return "Maximum capacity cannot be less than minimum capacity"
    if least < (0 if endpoint.fleet.config.async_inference_config else 1):
        return f"Minimum capacity cannot be less than 1: {least}"
    return ""


def _forget_policies(backend: Any) -> None:
    """A target takes its policies with it."""
    original = backend.deregister_scalable_target

    def deregister_scalable_target(self: Any, namespace: str, r_id: str, dimension: str) -> None:
        original(self, namespace, r_id, dimension)
        for key, policy in list(self.policies.items()):
            if (policy.resource_id, policy.scalable_dimension) == (r_id, dimension):
                del self.policies[key]

    backend.deregister_scalable_target = deregister_scalable_target


def is_scaled(backend: Any, endpoint: str) -> bool:
    """Say whether a variant of an endpoint of this SageMaker backend is a scalable target."""
    return bool(_targets(backend, f"endpoint/{endpoint}/", INSTANCES))


def forget_targets(backend: Any, prefix: str, dimension: str) -> None:
    """Deregister the targets of what was deleted, as AWS does."""
    for resource in _targets(backend, prefix, dimension):
        _scaling(backend).deregister_scalable_target(_SERVICE, resource, dimension)


def _targets(backend: Any, prefix: str, dimension: str) -> list[str]:
    return [name for name in _scaling(backend).targets.get(dimension, {}) if name.startswith(prefix)]


def _scaling(backend: Any) -> Any:
    from moto.applicationautoscaling.models import applicationautoscaling_backends

    return applicationautoscaling_backends[backend.account_id][backend.region_name]
