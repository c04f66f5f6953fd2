"""`push.sagemaker`: a package as a SageMaker endpoint, by names that hold its digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Finding,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from ..package import smoke
from .aws import invoking, objects
from .aws.endpoint import Deployment
from .aws.model_registry import Registration
from .aws.packed_model import ModelParams, PackedModel, package_upload, put_package
from .backoff import ASKED, ATTEMPTS
from .transcript import Transcript

_WAIT_S = 3600.0


class Serverless(StageParams):
    """A serverless variant: no instances, capacity by memory and concurrency."""

    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = Field(2048, description="memory in MB")
    max_concurrency: int = Field(5, ge=1, le=200, description="concurrent requests")


class Asynchronous(StageParams):
    """An endpoint that takes requests from S3 and puts its answers there."""

    output: str | None = Field(
        None,
        pattern=r"^s3://[^/]+/.+[^/]$",
        description="where responses are stored (default: in the bucket)",
    )
    max_concurrency: int | None = Field(None, ge=1, le=1000, description="concurrent requests per instance")


class Update(StageParams):
    """How an update shifts the traffic from the old instances to the new ones (blue/green)."""

    strategy: Literal["all-at-once", "canary", "linear"] = Field(
        "all-at-once", description="how traffic is shifted"
    )
    percent: int = Field(10, ge=1, le=50, description="the share of the canary, or of each linear step")
    interval_s: int = Field(300, ge=0, le=3600, description="seconds to watch each step")
    bake_s: int = Field(0, ge=0, le=3600, description="seconds to keep the old instances after the update")
    alarms: list[str] = Field(default=[], max_length=10, description="CloudWatch alarms that roll it back")

    @model_validator(mode="after")
    def _watched(self) -> Update:
        if self.strategy != "all-at-once" and not self.alarms:
            raise ValueError(f"only an alarm can roll back a {self.strategy} update: add one to `alarms`")
        return self

    def arguments(self) -> dict[str, Any]:
        """Return UpdateEndpoint's DeploymentConfig."""
        routing: dict[str, Any] = {
            "Type": self.strategy.upper().replace("-", "_"), "WaitIntervalInSeconds": self.interval_s
        }  # fmt: skip
        size = {"Type": "CAPACITY_PERCENT", "Value": self.percent}
        if self.strategy == "canary":
            routing["CanarySize"] = size
        elif self.strategy == "linear":
            routing["LinearStepSize"] = size
        policy = {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": self.bake_s}
        alarms = {"Alarms": [{"AlarmName": name} for name in self.alarms]}
        return {"BlueGreenUpdatePolicy": policy} | (
            {"AutoRollbackConfiguration": alarms} if self.alarms else {}
        )


class Registry(StageParams):
    """An entry of the model registry."""

    group: str = Field(
        pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9])*$", max_length=63, description="the model package group"
    )
    approval: Literal["PendingManualApproval", "Approved", "Rejected"] = Field(
        "PendingManualApproval", description="the status of a new version"
    )


class PushSagemaker(Stage):
    """Upload a package to S3, and converge model, endpoint config and endpoint to it.

    The names of the model and of the config contain the digest of their content: an existing one is
    compared, not created twice. The endpoint is updated last and waited for; its answers are compared
    with the packed model's, and if they differ it is rolled back.
    """

    uses = "push.sagemaker"
    packages = ("boto3", "sagemaker-core", "moto")
    extra = "sagemaker"
    network = True
    services = ("aws",)
    converges = True

    class Params(ModelParams):
        """What to deploy; what is left out comes from the target's `aws:`."""

        endpoint: str = Field(pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9])*$", max_length=40, description="its name")
        instance_type: str = Field("ml.m5.large", description="the kind of instance")
        instance_count: int = Field(1, ge=1, description="how many instances")
        serverless: Serverless | None = Field(None, description="a serverless endpoint instead of instances")
        asynchronous: Asynchronous | None = Field(
            None, description="an asynchronous endpoint, with requests and responses in S3"
        )
        update: Update = Field(default=Update(), description="how an update shifts the traffic")
        registry: Registry | None = Field(None, description="also register the package as a version")
        adopt: bool = Field(False, description="take over an endpoint that was made by something else")
        atol: float | None = Field(
            None, ge=0,
            description="tolerance of the smoke test (default: 1e-4 of each output's largest value)",
        )  # fmt: skip
        rtol: float | None = Field(None, ge=0, description="relative tolerance")

        @model_validator(mode="after")
        def _one_kind(self) -> PushSagemaker.Params:
            if self.serverless and self.asynchronous:
                raise ValueError("an endpoint is either `serverless` or `asynchronous`")
            return self

    class Inputs(StageInputs):
        """The package."""

        package: File = Field(description="model.tar.gz of package.sagemaker")
        smoke: File | None = Field(
            None, description="the smoke.npz of package.sagemaker, which tests the endpoint"
        )
        reports: dict[str, File] | None = Field(None, description="verify reports, for the registry")

    class Outputs(StageOutputs):
        """The transcript."""

        transcript: File = Output("transcript.json", "every object, name and call")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Objects first, then what names them, the endpoint last; then read all back."""
        transcript = Transcript()
        with objects.plainly():
            push = _Push(ctx, params, inputs, transcript)
            names = push.converge()
        ctx.converged = not transcript.changed
        ctx.figure("calls", transcript.calls)
        ctx.figure("package_sha256", push.upload.digest)
        for name, value in names.items():
            ctx.figure(name, value)
        transcript.write(
            outputs.transcript, package=push.upload.uri, sha256=push.upload.digest, **names
        )  # fmt: skip

    def status(self, ctx: Context, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare object, registry and endpoint with what the pipeline says."""
        with objects.plainly():
            push = _Push(ctx, params, inputs, Transcript(), attempts=ASKED)
            there = objects.is_there(push.upload)
            found = [Finding("object", push.upload.uri, push.upload.uri if there else "missing")]
            found += push.registration.findings() if push.registration else []
            return found + push.deployment.findings()

    def rollback(self, ctx: Context, params: Params, to: str) -> str:
        """Serve what was served before, or the newest package whose digest begins with `to`."""
        with objects.plainly():
            session, transcript = objects.boto_session(ctx), Transcript()
            unnamed = PackedModel(ctx, session, transcript, params, owner=params.endpoint, url="", digest="")
            return _deployment(ctx, params, session, transcript, unnamed).roll_back(to)

    def promote(self, ctx: Context, params: Params, inputs: Inputs, status: str) -> str:
        """Set the approval status of the package's version in the registry."""
        with objects.plainly():
            registration = _Push(ctx, params, inputs, Transcript()).registration
            if registration is None:
                raise StageError(f"{ctx.stage} has no `registry`", fix="set `with: {registry: {group: …}}`")
            return registration.promote(status)


class _Push:
    """One package on its way: its upload, its registration and its deployment."""

    def __init__(
        self,
        ctx: Context,
        params: PushSagemaker.Params,
        inputs: PushSagemaker.Inputs,
        transcript: Transcript,
        *,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._ctx, self._params, self._smoke = ctx, params, inputs.smoke
        self._transcript = transcript
        self._session = objects.boto_session(ctx, attempts=attempts)
        self.upload = package_upload(ctx, self._session, params, inputs.package, owner=params.endpoint)
        self.registration = self._registration(inputs.reports or {})
        self.model = PackedModel(
            ctx, self._session, transcript, params, owner=params.endpoint,
            url=self.upload.uri, digest=self.upload.digest,
        )  # fmt: skip
        self.deployment = _deployment(ctx, params, self._session, transcript, self.model)

    def _registration(self, reports: dict[str, Path]) -> Registration | None:
        if self._params.registry is None:
            return None
        return Registration(
            self._ctx, self._session, self._transcript, group=self._params.registry.group,
            approval=self._params.registry.approval, upload=self.upload,
            image=self._params.chosen(self._ctx, "image_uri"), reports=reports,
        )  # fmt: skip

    def converge(self) -> dict[str, str]:
        """Make what is missing, move the endpoint, wait, test; return the names."""
        put_package(self._ctx, self._session, self.upload, self._transcript)
        names = {}
        if self.registration is not None:
            names["model_package"] = self.registration.register()
        self.model.make()
        self.deployment.make_config()
        self.deployment.move(self._test if self._smoke else None)
        deployed = self.deployment
        return names | {
            "model": self.model.name, "endpoint_config": deployed.config_name, "endpoint": deployed.endpoint
        }  # fmt: skip

    def _test(self) -> None:
        assert self._smoke is not None
        params, name = self._params, self._params.endpoint
        if params.asynchronous:
            inbox = f"{_async_output(params, self._ctx)}/smoke"
            invoke = invoking.by_file(self._session, name, inbox=inbox, wait_s=_WAIT_S)
        else:
            invoke = invoking.by_request(self._session, name)
        samples = smoke.smoke_test(invoke, self._smoke, atol=params.atol, rtol=params.rtol)
        self._ctx.figure("smoke_samples", samples)


def _deployment(
    ctx: Context, params: PushSagemaker.Params, session: Any, transcript: Transcript, model: PackedModel
) -> Deployment:
    return Deployment(
        ctx, session, transcript, model, endpoint=params.endpoint,
        variant=_variant(params), config=_config(params, ctx), update=params.update.arguments(),
        adopt=params.adopt, wait_s=_WAIT_S,
    )  # fmt: skip


def _variant(params: PushSagemaker.Params) -> dict[str, Any]:
    """Return the capacity of the endpoint's one variant."""
    if params.serverless is None:
        return {"InstanceType": params.instance_type, "InitialInstanceCount": params.instance_count}
    size = params.serverless
    return {"ServerlessConfig": {"MemorySizeInMB": size.memory_mb, "MaxConcurrency": size.max_concurrency}}


def _config(params: PushSagemaker.Params, ctx: Context) -> dict[str, Any]:
    """Return the further arguments of the endpoint config."""
    if params.asynchronous is None:
        return {}
    config: dict[str, Any] = {"OutputConfig": {"S3OutputPath": _async_output(params, ctx)}}
    if most := params.asynchronous.max_concurrency:
        config["ClientConfig"] = {"MaxConcurrentInvocationsPerInstance": most}
    return {"AsyncInferenceConfig": config}


def _async_output(params: PushSagemaker.Params, ctx: Context) -> str:
    assert params.asynchronous is not None
    bucket = params.chosen(ctx, "bucket")
    return params.asynchronous.output or f"s3://{bucket}/{params.prefix}/{params.endpoint}/async"
