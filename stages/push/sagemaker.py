"""`push.sagemaker`: a package, or an image alone, as a SageMaker endpoint, by names that hold its digest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Finding,
    Folder,
    StageError,
    StageInputs,
    StageParams,
)

from ..package import smoke
from .aws import invoking, names, objects, smoke_samples
from .aws.client import Aws, AwsPush
from .aws.component import ComponentDeployment, carried
from .aws.endpoint import Deployment, SmokeTest
from .aws.gpu import require_gpu
from .aws.model_registry import Registration
from .aws.packed_model import PackedModel, package_upload, put_package
from .aws.release import NEEDS_DIGEST, kept_beside, release_of
from .aws.settings import EndpointParams
from .backoff import Backoff

_WAIT_S = 3600.0


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


class PushSagemaker(AwsPush):
    """Upload a package to S3, and converge model, endpoint config and endpoint to it.

    Without `package` the image is deployed alone, by its digest, with the model that it contains.
    The names of the model and of the config contain the digest of their content: an existing one is
    compared, not created twice. The endpoint is updated last, and the stage waits for it. Its
    answers are compared with the packed model's; if they differ, the endpoint is rolled back.
    """

    uses = "push.sagemaker"

    class Params(EndpointParams):
        """What to deploy; what is left out comes from the target's `aws:`."""

        endpoint: str = Field(pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9])*$", max_length=63, description="its name")
        update: Update = Field(default=Update(), description="how an update shifts the traffic")
        registry: Registry | None = Field(None, description="also register the package as a version")
        adopt: bool = Field(False, description="take over an endpoint that something else has created")
        atol: float | None = Field(
            None, ge=0,
            description="tolerance of the smoke test (default: 1e-4 of each output's largest value)",
        )  # fmt: skip
        rtol: float | None = Field(None, ge=0, description="relative tolerance")

        def check_inputs(self, given: Collection[str]) -> None:
            """Raise StageError for half of a shadow, and where nothing says what is deployed."""
            if ("shadow" in given) != (self.shadow is not None):
                raise StageError(
                    "a shadow needs both a package and its share of the requests",
                    fix="set `inputs: {shadow: …}` and `with: {shadow: {percent: …}}`, or neither",
                )
            if "package" in given:
                if "context" in given:
                    raise StageError("`package` and `context` exclude each other: the image serves either",
                                     fix="leave one out")  # fmt: skip
            elif self.image_uri is None:
                raise StageError(
                    "nothing says what is deployed",
                    fix="set `inputs: {package: …}`, or for an image that has a model of its own "
                    "`with: {image_uri: REPOSITORY@sha256:…}`",
                )
            elif not names.image_digest(self.image_uri):
                raise StageError(
                    "without `package` the image is what is deployed, and `image_uri` doesn't name it by its "
                    "digest", fix=NEEDS_DIGEST,
                )  # fmt: skip

    class Inputs(StageInputs):
        """The package, or nothing for an image alone."""

        package: File | None = Field(
            None,
            description="model.tar.gz of package.sagemaker (left out: `image_uri` has a model of its own)",
        )
        context: Folder | None = Field(
            None,
            description="the context of package.container that the image was built from: a dry run starts it",
        )
        smoke: File | None = Field(
            None,
            description="the smoke.npz of package.sagemaker or package.container, which tests the endpoint",
        )
        shadow: File | None = Field(None, description="another package, which `with: {shadow: …}` tries")
        reports: dict[str, File] | None = Field(None, description="verify reports, for the registry")

    def converge(self, aws: Aws, params: Params, inputs: Inputs, outputs: Any) -> dict[str, Any]:
        """Objects first, then what names them, the endpoint last; then read all back."""
        delivery = _Delivery(aws, params, inputs)
        made, release = delivery.converge(), delivery.release
        kind = "package" if release.package else "image"
        aws.ctx.figure(f"{kind}_sha256", release.digest)
        for name, value in made.items():
            aws.ctx.figure(name, value)
        return {kind: release.url or delivery.model.image, "sha256": release.digest, **made}

    def findings(self, aws: Aws, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare object, registry and endpoint with what the pipeline says."""
        delivery = _Delivery(aws, params, inputs)
        found = []
        if package := delivery.release.package:
            there = objects.is_there(package)
            found.append(Finding("object", package.uri, package.uri if there else "missing"))
        found += delivery.registration.findings() if delivery.registration else []
        return found + delivery.deployment.findings(tested=inputs.smoke is not None)

    def restore(self, aws: Aws, params: Params, to: str) -> str:
        """Serve what was served before, or the newest whose digest begins with `to`."""
        unnamed = PackedModel(aws, params, owner=params.endpoint, url="", digest="")

        def stored_test(config: Mapping[str, Any], container: Mapping[str, Any]) -> SmokeTest | None:
            output = (config.get("AsyncInferenceConfig") or {"OutputConfig": {}})["OutputConfig"]
            samples = smoke_samples.stored(aws, kept_beside(container, _folder(aws, params)))
            return _smoke_test(aws, params, samples, output.get("S3OutputPath")) if samples else None

        return _deployment(aws, params, unnamed).roll_back(to, stored_test)

    def promote(self, ctx: Context, params: Params, inputs: Inputs, status: str) -> str:
        """Set the approval status of the version in the registry."""
        with self.service(ctx, params, Backoff(log=ctx.log)) as aws:
            registration = _Delivery(aws, params, inputs).registration
            if registration is None:
                raise StageError(f"{ctx.stage} has no `registry`", fix="set `with: {registry: {group: …}}`")
            return registration.promote(status)


class _Delivery:
    """A release on its way: its registration and its deployment."""

    def __init__(self, aws: Aws, params: PushSagemaker.Params, inputs: PushSagemaker.Inputs) -> None:
        self._aws, self._params, self._smoke = aws, params, inputs.smoke
        self.release = release_of(aws, params, inputs.package, owner=params.endpoint)
        self.registration = self._registration(inputs.reports or {})
        self.model = _model(aws, params, self.release.url, self.release.digest)
        self._shadow = self._tried(inputs.shadow)
        tried = _model(aws, params, self._shadow.uri, self._shadow.digest) if self._shadow else None
        self._models = [self.model, tried] if tried else [self.model]
        for packed in filter(None, (inputs.package, inputs.context, inputs.shadow)):
            require_gpu(packed, self.model.image, None if params.serverless else params.instance_type)
        self.deployment = _deployment(aws, params, self.model, tried)

    def _tried(self, package: Path | None) -> objects.Upload | None:
        """Return the upload of the package that is tried on real requests."""
        if package is None:
            return None
        return package_upload(self._aws, self._params, package, owner=self._params.endpoint, name="shadow")

    def _registration(self, reports: dict[str, Path]) -> Registration | None:
        if self._params.registry is None:
            return None
        return Registration(
            self._aws, group=self._params.registry.group, approval=self._params.registry.approval,
            release=self.release, image=self._aws.setting(self._params, "image_uri"), reports=reports,
        )  # fmt: skip

    def converge(self) -> dict[str, str]:
        """Make what is missing, move the endpoint, wait, test; return the names."""
        self.release.put()
        if self._shadow:
            put_package(self._aws, self._shadow)
        made = {}
        if self.registration is not None:
            made["model_package"] = self.registration.register()
        for model in self._models:
            model.make()
        self.deployment.make_config()
        self.deployment.move(self._test if self._smoke else None)
        if self._smoke:
            smoke_samples.store(self.release, self._smoke)
        deployed = self.deployment
        return made | {
            "model": self.model.name, "endpoint_config": deployed.config_name, "endpoint": deployed.endpoint
        }  # fmt: skip

    def _test(self) -> None:
        assert self._smoke is not None
        output = None
        if self._params.asynchronous:
            output = self._params.async_output(_folder(self._aws, self._params))
        _smoke_test(self._aws, self._params, self._smoke, output)()


def _smoke_test(aws: Aws, params: PushSagemaker.Params, path: Path, output: str | None) -> SmokeTest:
    """Return the test of the endpoint; `output` is where an asynchronous one puts its answers."""

    def test() -> None:
        name, session = params.endpoint, aws.session
        invoke = (
            invoking.by_file(session, name, inbox=f"{output}/smoke", wait_s=_WAIT_S)
            if output
            else invoking.by_request(session, name, name if params.component else None)
        )
        samples = smoke.smoke_test(invoke, path, atol=params.atol, rtol=params.rtol)
        aws.ctx.figure("smoke_samples", samples)

    return test


def _model(aws: Aws, params: PushSagemaker.Params, url: str, digest: str) -> PackedModel:
    return PackedModel(aws, params, owner=params.endpoint, url=url, digest=digest, carries=carried(params))


def _deployment(
    aws: Aws, params: PushSagemaker.Params, model: PackedModel, shadow: PackedModel | None = None
) -> Deployment:
    size, scaling = params.component, params.scaling()
    endpoint = Deployment(
        aws, model, endpoint=params.endpoint, variant=params.variant(),
        config=params.config(_folder(aws, params), model.role, shadow.name if shadow else None),
        scaling=None if size else scaling, update=params.update.arguments(), adopt=params.adopt,
        wait_s=_WAIT_S, hosts=size is not None,
    )  # fmt: skip
    if size is None:
        return endpoint
    return ComponentDeployment(
        aws, model, endpoint, copies=size.copies, component=carried(params)["component"], scaling=scaling,
        adopt=params.adopt, wait_s=_WAIT_S,
    )  # fmt: skip


def _folder(aws: Aws, params: PushSagemaker.Params) -> str:
    return f"s3://{aws.setting(params, 'bucket')}/{params.prefix}/{params.endpoint}"
