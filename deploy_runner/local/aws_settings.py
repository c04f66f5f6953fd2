"""The settings of a model and of an endpoint config: held as AWS holds them, refused as AWS refuses them.

moto 5.2.5 drops those that it doesn't know, and has a list of instance types of its own. The ranges are
in `aws_requests`, what excludes what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["hold_settings"]

_INF1 = "ml.inf1."
_HELD = {
    "create_model": ("ModelName", "_models", ("EnableNetworkIsolation",)),
    "create_endpoint_config": (
        "EndpointConfigName",
        "endpoint_configs",
        ("ShadowProductionVariants", "ExecutionRoleArn", "VpcConfig", "EnableNetworkIsolation"),
    ),
}
_NOT_SUPPORTED = "One or more endpoint features are not supported using this configuration: {} with {}."


def hold_settings(backend: Any, response: Any, refuse: Callable[[str], Exception]) -> None:
    """Patch moto's SageMaker backend and its responses."""
    from moto.sagemaker.models import FakeEndpointConfig

    setattr(FakeEndpointConfig, "validate_instance_type", lambda self, instance_type: None)  # noqa: B010
    for action in _HELD:
        _hold(response, action)
    backend.validate_production_variants = lambda self, production_variants: None
    _exclude(backend, response, refuse)
    _summarize_capture(response)


def _hold(response: Any, action: str) -> None:
    original = getattr(response, action)
    name, store, held = _HELD[action]

    def create(self: Any) -> Any:
        made = original(self)
        resource = getattr(self.sagemaker_backend, store)[self._get_param(name)]
        for member in held:
            if (value := self._get_param(member)) is not None:
                setattr(resource, _attribute(member), value)
        return made

    setattr(response, action, create)


def _attribute(member: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in member).lstrip("_")


def _exclude(backend: Any, response: Any, refuse: Callable[[str], Exception]) -> None:
    create = response.create_endpoint_config

    def create_endpoint_config(self: Any) -> Any:
        for feature, other in _exclusions(self.sagemaker_backend, self._get_param):
            raise refuse(_NOT_SUPPORTED.format(feature, other))
        return create(self)

    response.create_endpoint_config = create_endpoint_config


def _exclusions(backend: Any, given: Callable[[str], Any]) -> list[tuple[str, str]]:
    """Return the pairs of features of an endpoint config that exclude each other."""
    variants, shadows = given("ProductionVariants") or [], given("ShadowProductionVariants") or []
    serverless = [variant for variant in variants if "ServerlessConfig" in variant]
    there = {
        "instances": any("InstanceType" in v or "InitialInstanceCount" in v for v in serverless),
        "data capture": given("DataCaptureConfig"),
        "asynchronous inference": given("AsyncInferenceConfig"),
        "several variants": len(variants) > 1,
        "a VPC or network isolation": any(_isolated(backend, v) for v in variants),
        "a GPU": any(_has_gpu(v) for v in serverless),
        "more provisioned than maximum concurrency": any(_overbooked(v) for v in serverless),
    }
    found = [(name, "serverless") for name, is_there in there.items() if serverless and is_there]
    if shadows:
        others = {
            "serverless": serverless, "asynchronous inference": there["asynchronous inference"],
            "several variants": len(variants) > 1 or len(shadows) > 1,
            "Inf1 instances": any(v.get("InstanceType", "").startswith(_INF1) for v in variants + shadows),
        }  # fmt: skip
        found += [("shadow variants", name) for name, is_there in others.items() if is_there]
    return found


def _isolated(backend: Any, variant: Mapping[str, Any]) -> bool:
    model = backend._models.get(variant.get("ModelName"))
    return model is not None and bool(model.vpc_config or model.enable_network_isolation)


def _has_gpu(variant: Mapping[str, Any]) -> bool:
    return "gpu" in variant.get("InferenceAmiVersion", "")


def _overbooked(variant: Mapping[str, Any]) -> bool:
    size = variant["ServerlessConfig"]
    return bool(size.get("ProvisionedConcurrency", 0) > size["MaxConcurrency"])


def _summarize_capture(response: Any) -> None:
    """AWS describes an endpoint's capture by a summary, which its own SDK requires."""
    original = response.describe_endpoint

    def describe_endpoint(self: Any) -> Any:
        result = original(self)
        config = result._result["EndpointConfigName"]
        captured = self.sagemaker_backend.endpoint_configs[config].data_capture_config
        result._result["DataCaptureConfig"] = captured and {
            "EnableCapture": captured.get("EnableCapture", True),
            "CaptureStatus": "Started",
            "CurrentSamplingPercentage": captured["InitialSamplingPercentage"],
            **{name: captured[name] for name in ("DestinationS3Uri", "KmsKeyId") if name in captured},
        }
        return result

    response.describe_endpoint = describe_endpoint
