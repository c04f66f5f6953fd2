"""What AWS takes of an endpoint's settings, as read on 2026-11-30.

Ranges are those of botocore 1.44.5's service models: a test compares them. Combinations are from AWS's
documentation, the page of each is named beside it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from deploy_runner.sdk import Field

__all__ = ["ACCELERATED", "EXCLUDED", "RANGES", "Excluded", "Range", "has_gpu", "limited"]

ACCELERATED = {"gpu": r"ml\.(g|p)\d", "neuron": r"ml\.(inf|trn)\d"}
"""How the types of instances begin that have a GPU of NVIDIA's, or a chip of AWS's own."""


def has_gpu(instance_type: str) -> bool:
    """Say whether instances of this type have GPUs of NVIDIA's."""
    return re.match(ACCELERATED["gpu"], instance_type) is not None


class Range(NamedTuple):
    """The least and the largest value of a member of one of SageMaker's shapes."""

    shape: str
    member: str
    least: int
    most: int


RANGES = {
    "startup_timeout_s": Range("ProductionVariant", "ContainerStartupHealthCheckTimeoutInSeconds", 60, 3600),
    "download_timeout_s": Range("ProductionVariant", "ModelDataDownloadTimeoutInSeconds", 60, 3600),
    "volume_gb": Range("ProductionVariant", "VolumeSizeInGB", 1, 512),
    "security_groups": Range("VpcConfig", "SecurityGroupIds", 1, 5),
    "subnets": Range("VpcConfig", "Subnets", 1, 16),
    "max_concurrency": Range("ProductionVariantServerlessConfig", "MaxConcurrency", 1, 200),
    "provisioned": Range("ProductionVariantServerlessConfig", "ProvisionedConcurrency", 1, 200),
    "per_instance": Range("AsyncInferenceClientConfig", "MaxConcurrentInvocationsPerInstance", 1, 1000),
    "percent": Range("DataCaptureConfig", "InitialSamplingPercentage", 0, 100),
}


class Excluded(NamedTuple):
    """Settings that an endpoint of a kind can't have, and the page that says so."""

    kind: str
    settings: tuple[str, ...]
    source: str


_GUIDE = "https://docs.aws.amazon.com/sagemaker/latest/dg"
EXCLUDED = (
    Excluded(
        "serverless",
        ("asynchronous", "vpc", "network_isolation", "capture", "autoscaling"),
        f"{_GUIDE}/serverless-endpoints.html#serverless-endpoints-how-it-works-exclusions",
    ),
    Excluded(
        "component",
        ("serverless", "asynchronous", "shadow", "capture"),
        f"{_GUIDE}/realtime-endpoints-deploy-models.html",
    ),
    Excluded("shadow", ("serverless", "asynchronous"), f"{_GUIDE}/shadow-tests-exclusions.html"),
    Excluded(  # These are about the instances, which it has none of.
        "serverless",
        ("volume_gb", "startup_timeout_s", "download_timeout_s", "inference_ami", "kms_key"),
        f"{_GUIDE}/serverless-endpoints-create-config.html",
    ),
)


def limited(name: str, description: str) -> Any:
    """Return an optional parameter with the range of this name."""
    _, _, least, most = RANGES[name]
    return Field(None, ge=least, le=most, description=description)
