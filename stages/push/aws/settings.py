"""The settings of an endpoint: parameters of `push.sagemaker`, and what they are in AWS's words.

A setting that isn't made leaves nothing in AWS's arguments: an endpoint without any keeps the name of its
config.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator

from deploy_runner.sdk import Field, StageParams

from .autoscaling import Scaling
from .limits import ACCELERATED, EXCLUDED, RANGES, has_gpu, limited
from .packed_model import ModelParams

__all__ = ["Asynchronous", "Autoscaling", "Capture", "Component", "EndpointParams", "Serverless", "Shadow"]

WEIGHT = 1.0
"""The production variant's weight; a shadow's share of the requests is its weight divided by this."""
_S3_FOLDER = r"^s3://[^/]+/.+[^/]$"
_TOPIC = r"^arn:aws[a-z\-]*:sns:[a-z0-9\-]*:[0-9]{12}:[a-zA-Z0-9_.-]+$"
_AMIS = Literal[
    "al2-ami-sagemaker-inference-gpu-2",
    "al2-ami-sagemaker-inference-gpu-2-1",
    "al2-ami-sagemaker-inference-gpu-3-1",
    "al2-ami-sagemaker-inference-neuron-2",
    "al2023-ami-sagemaker-inference-gpu-4-1",
]
_MODES = {"requests": ("Input",), "responses": ("Output",), "both": ("Input", "Output")}


class Serverless(StageParams):
    """A serverless variant: no instances, capacity by memory and concurrency."""

    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = Field(2048, description="memory in MB")
    max_concurrency: int = Field(
        5, ge=1, le=RANGES["max_concurrency"].most, description="concurrent requests"
    )
    provisioned_concurrency: int | None = limited("provisioned", "how many of these are kept warm")

    @model_validator(mode="after")
    def _within(self) -> Serverless:
        if (self.provisioned_concurrency or 0) > self.max_concurrency:
            raise ValueError(
                f"`provisioned_concurrency` is at most `max_concurrency`, {self.max_concurrency}"
            )
        return self

    def arguments(self) -> dict[str, int]:
        """Return the variant's ServerlessConfig."""
        size = {"MemorySizeInMB": self.memory_mb, "MaxConcurrency": self.max_concurrency}
        warm = self.provisioned_concurrency
        return size | ({"ProvisionedConcurrency": warm} if warm else {})


class Asynchronous(StageParams):
    """An endpoint that takes requests from S3 and puts its answers there."""

    output: str | None = Field(
        None, pattern=_S3_FOLDER, description="where responses are stored (default: in the bucket)"
    )
    max_concurrency: int | None = limited("per_instance", "concurrent requests per instance")
    success_topic: str | None = Field(
        None, pattern=_TOPIC, description="the ARN of an SNS topic that is told of each response"
    )
    error_topic: str | None = Field(
        None, pattern=_TOPIC, description="the ARN of an SNS topic that is told of each failure"
    )

    def arguments(self, output: str, kms: dict[str, str]) -> dict[str, Any]:
        """Return the config's AsyncInferenceConfig."""
        told = {"SuccessTopic": self.success_topic, "ErrorTopic": self.error_topic}
        topics = {name: topic for name, topic in told.items() if topic}
        target = {"S3OutputPath": output, **kms} | ({"NotificationConfig": topics} if topics else {})
        client = {"MaxConcurrentInvocationsPerInstance": self.max_concurrency}
        return {"OutputConfig": target} | ({"ClientConfig": client} if self.max_concurrency else {})


class Capture(StageParams):
    """A share of the requests and responses, kept in S3."""

    percent: int = Field(
        100, ge=1, le=RANGES["percent"].most, description="the share of requests that is kept"
    )
    of: Literal["requests", "responses", "both"] = Field("both", description="what is kept of each")
    destination: str | None = Field(
        None, pattern=_S3_FOLDER, description="where it is kept (default: in the bucket)"
    )

    def arguments(self, destination: str, kms: dict[str, str]) -> dict[str, Any]:
        """Return the config's DataCaptureConfig."""
        return {
            "EnableCapture": True,
            "InitialSamplingPercentage": self.percent,
            "DestinationS3Uri": destination,
            "CaptureOptions": [{"CaptureMode": mode} for mode in _MODES[self.of]],
            **kms,
        }


class Shadow(StageParams):
    """A second package that is sent a share of the requests; its responses reach nobody but `capture`."""

    percent: int = Field(100, ge=1, le=100, description="the share of requests that it is sent as well")


class Component(StageParams):
    """The package as an inference component: its copies share instances, which AWS adds and removes.

    It has the endpoint's name.
    """

    memory_mb: int = Field(ge=128, description="the memory of each copy in MB")
    cpus: float | None = Field(None, ge=0.25, description="the processor cores of each copy")
    accelerators: int | None = Field(None, ge=1, description="the accelerators of each copy")
    copies: int = Field(1, ge=1, description="how many copies, at first")
    min_instances: int = Field(1, ge=0, description="the fewest instances; 0 if no copy needs one")
    max_instances: int = Field(ge=1, description="the most instances")

    @model_validator(mode="after")
    def _ordered(self) -> Component:
        if self.min_instances > self.max_instances:
            raise ValueError(
                f"`min_instances` {self.min_instances} is above `max_instances` {self.max_instances}"
            )
        return self

    def hosting(self) -> dict[str, Any]:
        """Return what the variant has instead of a model."""
        instances = {"MinInstanceCount": self.min_instances, "MaxInstanceCount": self.max_instances}
        return {
            "ManagedInstanceScaling": {"Status": "ENABLED", **instances},
            "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        }


class Autoscaling(StageParams):
    """How many instances there are, or copies of a `component`, by what each of them has to do."""

    min: int = Field(ge=0, description="the fewest; 0 only if `asynchronous`, or of a `component`")
    max: int = Field(ge=1, description="the most")
    target: float = Field(
        gt=0,
        description="what each of them is to have: invocations a minute, or requests in the queue if "
        "`asynchronous`",
    )
    scale_in_cooldown_s: int = Field(300, ge=0, description="seconds between two removals")
    scale_out_cooldown_s: int = Field(300, ge=0, description="seconds between two additions")

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(f"`min` {self.min} is above `max` {self.max}")
        return self


class EndpointParams(ModelParams):
    """A model, and the endpoint that serves it."""

    instance_type: str = Field(
        "ml.m5.large", pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$", description="the kind of instance"
    )
    instance_count: int = Field(1, ge=1, description="how many instances, at first if `autoscaling`")
    autoscaling: Autoscaling | None = Field(None, description="add and remove instances by the load")
    component: Component | None = Field(None, description="an inference component on the instances")
    serverless: Serverless | None = Field(None, description="a serverless endpoint instead of instances")
    asynchronous: Asynchronous | None = Field(
        None, description="an asynchronous endpoint, with requests and responses in S3"
    )
    startup_timeout_s: int | None = limited("startup_timeout_s", "seconds for the container to be healthy")
    download_timeout_s: int | None = limited("download_timeout_s", "seconds to download and unpack the model")
    volume_gb: int | None = limited("volume_gb", "the size of each instance's volume in GB")
    inference_ami: _AMIS | None = Field(None, description="the instances' image: drivers of accelerators")
    kms_key: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9:/_-]+$",
        max_length=2048,
        description="the KMS key of the instances' volumes, and of what is captured or answered in S3",
    )
    capture: Capture | None = Field(None, description="keep requests and responses in S3")
    shadow: Shadow | None = Field(None, description="try the package of the input `shadow` on real requests")

    @model_validator(mode="after")
    def _goes_together(self) -> EndpointParams:
        self._exclude()
        if self.serverless and has_gpu(self.instance_type):
            raise ValueError(
                f"a `serverless` endpoint has no GPU: leave out `instance_type: {self.instance_type}`"
            )
        if self.inference_ami is not None:
            self._fits(self.inference_ami)
        if self.autoscaling is not None:
            self._scales(self.autoscaling)
        if self.shadow and self.instance_type.startswith("ml.inf1."):
            raise ValueError(f"a `shadow` can't be tried on {self.instance_type}")
        return self

    def _exclude(self) -> None:
        for kind, settings, source in EXCLUDED:
            if getattr(self, kind):
                wrong = [f"`{name}`" for name in settings if getattr(self, name)]
                if wrong:
                    raise ValueError(f"a `{kind}` endpoint has no {', '.join(wrong)}: {source}")

    def _fits(self, ami: str) -> None:
        kind = "neuron" if "neuron" in ami else "gpu"
        if not re.match(ACCELERATED[kind], self.instance_type):
            raise ValueError(f"`inference_ami: {ami}` is for instances with {kind}, not {self.instance_type}")

    def _scales(self, scaling: Autoscaling) -> None:
        if scaling.min == 0 and not (self.asynchronous or self.component):
            raise ValueError(
                "`autoscaling.min: 0` needs `asynchronous` or `component`: nothing else is woken"
            )
        what, first = "instance_count", self.instance_count
        if self.component is not None:
            what, first = "component.copies", self.component.copies
        if not scaling.min <= first <= scaling.max:
            raise ValueError(f"`{what}: {first}` is not within `autoscaling`, {scaling.min} to {scaling.max}")

    @property
    def startup(self) -> dict[str, int]:
        """Return the time limits of a container's start."""
        limits = {
            "ContainerStartupHealthCheckTimeoutInSeconds": self.startup_timeout_s,
            "ModelDataDownloadTimeoutInSeconds": self.download_timeout_s,
        }
        return {name: value for name, value in limits.items() if value is not None}

    def variant(self) -> dict[str, Any]:
        """Return the capacity and the settings of the endpoint's one variant."""
        if self.serverless is not None:
            return {"ServerlessConfig": self.serverless.arguments()}
        instances = {"InstanceType": self.instance_type, "InitialInstanceCount": self.instance_count}
        more = {"VolumeSizeInGB": self.volume_gb, "InferenceAmiVersion": self.inference_ami}
        served = self.component.hosting() if self.component else self.startup
        return instances | served | {name: value for name, value in more.items() if value is not None}

    def config(self, folder: str, role: str, shadow: str | None) -> dict[str, Any]:
        """Return the further arguments of the endpoint config.

        `folder` is the endpoint's in the bucket, `role` what it assumes, `shadow` the name of the shadow's
        model.
        """
        kms = {"KmsKeyId": self.kms_key} if self.kms_key else {}
        config: dict[str, Any] = dict(kms)
        if self.component is not None:
            config |= {"ExecutionRoleArn": role, **self.network()}
        if self.asynchronous is not None:
            config["AsyncInferenceConfig"] = self.asynchronous.arguments(self.async_output(folder), kms)
        if self.capture is not None:
            destination = self.capture.destination or f"{folder}/capture"
            config["DataCaptureConfig"] = self.capture.arguments(destination, kms)
        if self.shadow is not None and shadow is not None:
            variant = {"VariantName": "shadow", "ModelName": shadow, **self.variant()}
            share = {"InitialVariantWeight": WEIGHT * self.shadow.percent / 100}
            config["ShadowProductionVariants"] = [variant | share]
        return config

    def scaling(self) -> Scaling | None:
        """Return how the variant scales."""
        if self.autoscaling is None:
            return None
        metric = "backlog" if self.asynchronous else "copies" if self.component else "invocations"
        return Scaling(metric=metric, **self.autoscaling.model_dump())

    def async_output(self, folder: str) -> str:
        """Return where an asynchronous endpoint puts its responses."""
        assert self.asynchronous is not None
        return self.asynchronous.output or f"{folder}/async"
