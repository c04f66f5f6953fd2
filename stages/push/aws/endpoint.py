"""Converge an endpoint and its config to one model, and take it back.

The endpoint is the pointer: it is moved last, smoke-tested, and moved back where the test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deploy_runner.sdk import ConflictError, Finding, GateError, StageError

from . import drift, objects
from .autoscaling import SCALING_TAG, Autoscaling, Scaled, Scaling
from .client import Aws, plainly
from .endpoint_configs import EndpointConfigs
from .endpoint_tags import EndpointTags
from .packed_model import GONE, TAG, PackedModel, named, or_none
from .settings import WEIGHT
from .waiting import show, waiting

SmokeTest = Callable[[], None]
"""Raises GateError for a wrong answer, and any other error where there is none."""

VARIANT = "main"
_SETTINGS = (
    "InstanceType", "InitialInstanceCount", "ServerlessConfig", "ContainerStartupHealthCheckTimeoutInSeconds",
    "ModelDataDownloadTimeoutInSeconds", "VolumeSizeInGB", "InferenceAmiVersion", "KmsKeyId",
    "AsyncInferenceConfig", "DataCaptureConfig", "ShadowProductionVariants", "VpcConfig",
    "EnableNetworkIsolation", "ManagedInstanceScaling",
)  # fmt: skip
_UNSETTLED = ("Creating", "Updating", "SystemUpdating", "RollingBack")


class Deployment:
    """An endpoint, and the config that it is to have.

    `variant` holds the instances or the serverless size, `config` further arguments of the endpoint
    config, `update` the deployment config of an update: all in AWS's words. `scaling` is how many instances
    there are to be later on. `adopt` allows to move an endpoint that something else has made. One that
    `hosts` components serves no model of its own.
    """

    def __init__(
        self,
        aws: Aws,
        model: PackedModel,
        *,
        endpoint: str,
        variant: Mapping[str, Any],
        config: Mapping[str, Any],
        scaling: Scaling | None,
        update: Mapping[str, Any],
        adopt: bool,
        wait_s: float,
        hosts: bool = False,
    ) -> None:
        self._aws, self._ctx, self._transcript = aws, aws.ctx, aws.transcript
        self._client = aws.session.client("sagemaker")
        self._model = model
        self._variant = dict(variant)
        self._config = dict(config)
        self._scaling = scaling
        self._update = dict(update)
        self._adopt = adopt
        self._wait_s = wait_s
        self._tags = EndpointTags(self._client, endpoint)
        self._configs = EndpointConfigs(self._client, endpoint)
        self.endpoint = endpoint
        scaled = [str(scaling)] if scaling else []
        self._served = {} if hosts else {"ModelName": model.name}
        served = self._served.get("ModelName")
        self.config_name = named(endpoint, "config", served, self._variant, self._config, *scaled)
        self._scaled = Scaled(Autoscaling(aws, name=endpoint, variant=VARIANT), self._configs,
                              {self.config_name: scaling})  # fmt: skip

    def make_config(self) -> None:
        """Make the endpoint config unless it is there. Raises ConflictError where it differs.

        By boto3: sagemaker-core 2.27 sends a serverless variant's memory as `MemorySizeInMb`, which is
        no parameter of AWS.
        """
        variant = {
            "VariantName": VARIANT,
            "InitialVariantWeight": WEIGHT,
            **self._served,
            **self._variant,
        }

        def describe() -> Any:
            return self._client.describe_endpoint_config(EndpointConfigName=self.config_name)

        found = or_none(describe)
        if found is None:
            objects.unless(lambda: self._client.create_endpoint_config(
                EndpointConfigName=self.config_name, ProductionVariants=[variant], **self._config,
                Tags=self._config_tags()), "already exist")  # fmt: skip
            self._transcript.add("sagemaker:CreateEndpointConfig", name=self.config_name)
            found = describe()
        if [v.get("ModelName") for v in found["ProductionVariants"]] != [self._served.get("ModelName")]:
            raise ConflictError(
                f"the endpoint config {self.config_name} already exists and refers to another model"
            )
        what = f"the endpoint config {self.config_name}"
        drift.require_same(what, self._variant | self._config, found["ProductionVariants"][0] | found)

    def _config_tags(self) -> list[dict[str, str]]:
        scaled = [{"Key": SCALING_TAG, "Value": str(self._scaling)}] if self._scaling else []
        return self._model.aws_tags + scaled

    def move(self, smoke_test: SmokeTest | None) -> None:
        """Point the endpoint at the config, wait, and test it.

        Where the test fails or can't be done, or AWS takes the update back, the endpoint serves what it
        served before and GateError is raised; an endpoint that is new is removed. Raises ConflictError
        where somebody else has made or moved the endpoint meanwhile: it stays as it is.
        """
        before = self._settled(self.config_name)
        if self._scaling is not None:
            self._scaled.require_own()
        if before is None:
            self._create()
        elif before != self.config_name:
            self._require_own()
            self._require_kind(before)
            self._note_served(before, self.config_name)
            self._update_to(self.config_name, before)
        if smoke_test is not None:
            refusal = _refusal(smoke_test)
            if refusal is not None:
                done = self._undone(self.config_name, before)
                raise GateError(f"{refusal.message}; {done}", fix=refusal.fix) from refusal
            self._ctx.log("the smoke test has passed")
        self._require_serves(self.config_name)
        self._scaled.follow(self.config_name)
        self._tags.note(self._model.tags, tested=self.config_name if smoke_test else "")

    def _require_own(self) -> None:
        if not self._adopt and not self._tags.own():
            raise ConflictError(
                f"the endpoint {self.endpoint} already exists and was not created by deploy-runner",
                fix="set `with: {adopt: true}` to take it over, or choose another name",
            )

    def _require_kind(self, before: str) -> None:
        """Raise ConflictError where no update leads from one kind of endpoint to the other.

        https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html
        """
        found = or_none(lambda: self._configs.describe(before))
        variant = found["ProductionVariants"][0] if found else {}
        if "InstanceType" in variant and "ServerlessConfig" in self._variant:
            kind = "has instances"
        elif found and ("ModelName" in variant) != bool(self._served):
            kind = "hosts components" if self._served else "serves a model of its own"
        else:
            return
        raise ConflictError(f"the endpoint {self.endpoint} {kind}, which no update changes",
                            fix="choose another name, or delete it first")  # fmt: skip

    def _require_serves(self, config: str) -> None:
        """Raise ConflictError where the endpoint has another config than this process gave it."""
        found = self._describe()
        if found is None or found.endpoint_config_name != config:
            said = "is gone" if found is None else f"has the config {found.endpoint_config_name}"
            raise ConflictError(f"the endpoint {self.endpoint} {said}, not {config}: somebody else "
                                f"has changed it meanwhile, and it stays as it is",
                                fix="let one push at a time write to an endpoint")  # fmt: skip

    def _describe(self) -> Any:
        from sagemaker.core.resources import Endpoint

        return or_none(lambda: Endpoint.get(endpoint_name=self.endpoint, **self._aws.where))

    def _settled(self, config: str) -> str | None:
        """Return the config that the endpoint serves, once nothing is under way; None without one.

        An endpoint that failed to start can't be updated: ours is removed and recreated. Raises
        ConflictError where it is somebody else's, or an update to something else than `config` is under way.
        """
        found = self._wait(config)
        if found is None:
            return None
        if found.endpoint_status == "Failed":
            self._require_own()
            self._ctx.log(f"the endpoint {self.endpoint} had failed: {found.failure_reason}; it is recreated")
            self._delete()
            return None
        if found.endpoint_status != "InService":
            raise StageError(f"the endpoint {self.endpoint} is {found.endpoint_status}")
        return str(found.endpoint_config_name)

    def _wait(self, config: str) -> Any:
        """Wait until the endpoint has settled, with progress; return it, or None if there is none."""
        for took in waiting(self._wait_s):
            found = self._describe()
            if found is None or found.endpoint_status not in _UNSETTLED:
                return found
            if _pending(found) not in ("", config):
                raise self._overtaken(_pending(found))
            show(self._ctx, self.endpoint, found.endpoint_status, took)
        raise StageError(
            f"the endpoint {self.endpoint} is still {found.endpoint_status} after {self._wait_s:.0f} s",
            fix="run again: the next run resumes waiting",
        )

    def _overtaken(self, config: str) -> ConflictError:
        return ConflictError(f"somebody else is moving the endpoint {self.endpoint} to {config}",
                             fix="run again once that update has ended")  # fmt: skip

    def _create(self) -> None:
        named = {"EndpointName": self.endpoint, "EndpointConfigName": self.config_name}
        objects.unless(
            lambda: self._client.create_endpoint(**named, Tags=self._model.aws_tags), "already exist"
        )
        self._require_serves(self.config_name)
        self._transcript.add("sagemaker:CreateEndpoint", name=self.endpoint, config=self.config_name)
        found = self._wait(self.config_name)
        if found is not None and found.endpoint_status == "InService":
            return
        reason = "" if found is None else found.failure_reason
        self._delete()
        raise GateError(f"the endpoint {self.endpoint} failed to start and was removed: {reason}")

    def _update_to(self, config: str, before: str, *, at_once: bool = False) -> None:
        """Update, and wait. Raises GateError where AWS has rolled it back, ConflictError as _settled does."""
        self._ctx.log(f"{self.endpoint}: {before} → {config}")
        arguments: dict[str, Any] = {"EndpointName": self.endpoint, "EndpointConfigName": config}
        if self._update and not at_once:
            arguments["DeploymentConfig"] = self._update
        if self._scaled.keeps(before, config):
            arguments["RetainAllVariantProperties"] = True
        if objects.unless(lambda: self._client.update_endpoint(**arguments), "in-progress", "already uses"):
            self._require_moving_to(config)
        self._transcript.add("sagemaker:UpdateEndpoint", name=self.endpoint, config=config)
        after = self._settled(config)
        if after not in (config, before):
            raise ConflictError(f"somebody else has moved the endpoint {self.endpoint} to {after} meanwhile",
                                fix="let one push at a time write to an endpoint")  # fmt: skip
        if after != config:
            self._scaled.follow(before)
            raise GateError(f"AWS rolled back the update of {self.endpoint}: its new containers did not "
                            f"start, or an alarm fired; it serves {before}",
                            fix="see the endpoint's CloudWatch logs")  # fmt: skip

    def _note_served(self, before: str, config: str) -> None:
        """Note what is served before an update to `config`.

        Where that comes to nothing, a rollback passes over what is still served to what was before it.
        """
        earlier = self._tags.earlier()
        self._tags.remember([before, *(name for name in earlier if name not in (before, config))])

    def _require_moving_to(self, config: str) -> None:
        """Raise ConflictError where an update that was refused isn't the echo of our own first try."""
        found = self._describe()
        if found is None or config not in (found.endpoint_config_name, _pending(found)):
            raise self._overtaken("another config" if found is None else _pending(found) or "another config")

    def _undone(self, refused: str, before: str | None) -> str:
        """Take the endpoint back from a config that was refused; say what was done, or why it can't be."""
        try:
            with plainly():
                self._require_serves(refused)
                return self._take_back(refused, before)
        except StageError as error:
            return f"and {self.endpoint} still serves it, since it can't be taken back: {error.message}"

    def _take_back(self, refused: str, before: str | None) -> str:
        """Undo the move; what was refused is never what a rollback goes back to."""
        if before is None:
            self._delete()
            return f"the new endpoint {self.endpoint} was removed"
        good = [name for name in self._tags.earlier() if name != refused]
        if not good:
            self._tags.forget_test()
            return f"the endpoint {self.endpoint} has no earlier version to serve"
        self._tags.remember(good)
        to = before if before != refused else good[0]
        self._update_to(to, refused, at_once=True)
        self._scaled.follow(to)
        return f"rolled back: {self.endpoint} serves {to} again"

    def _delete(self) -> None:
        objects.unless(lambda: self._client.delete_endpoint(EndpointName=self.endpoint), GONE)
        self._transcript.add("sagemaker:DeleteEndpoint", name=self.endpoint)
        for _ in waiting(self._wait_s):
            if self._describe() is None:
                return
        raise StageError(f"the endpoint {self.endpoint} can't be removed")

    def findings(self, *, tested: bool) -> list[Finding]:
        """Return what is deployed beside what the pipeline says; `tested` where it has a smoke test."""
        found = self._describe()
        if found is None:
            return [Finding(f"endpoint {self.endpoint}", "InService", "missing")]
        rows = [Finding(f"endpoint {self.endpoint}", "InService", str(found.endpoint_status))]
        config = self._client.describe_endpoint_config(EndpointConfigName=found.endpoint_config_name)
        variant = config["ProductionVariants"][0]
        model = self._configs.model_of(config)
        if self._served:
            rows += self._package_findings(model)
        wanted = self._variant | self._config | self._model.network
        others = _SETTINGS if found.endpoint_config_name != self.config_name else ()
        rows += drift.rows(dict.fromkeys([*wanted, *others]), wanted, config | model | variant)
        rows += self._scaled.findings(str(found.endpoint_config_name), self._scaling)
        rows.append(Finding("endpoint config", self.config_name, str(found.endpoint_config_name)))
        if tested:
            passed = self._tags.tested(str(found.endpoint_config_name))
            rows.append(Finding("smoke test", "passed", "passed" if passed else "not passed"))
        return rows

    def _package_findings(self, model: Mapping[str, Any]) -> list[Finding]:
        container = model.get("PrimaryContainer") or {}
        wanted = {"package": self._model.url, "image": self._model.image}
        found = {"package": container.get("ModelDataUrl"), "image": container.get("Image")}
        return drift.rows(wanted, wanted, found)

    def roll_back(
        self, to: str, stored_test: Callable[[Mapping[str, Any], Mapping[str, Any]], SmokeTest | None]
    ) -> str:
        """Serve the config before, or the newest whose digest begins with `to`; return what was done.

        `stored_test` returns the smoke test of an endpoint config and of the container that it serves, both
        as AWS describes them, or None where there is none. Where it fails, the endpoint is taken back and
        GateError raised.
        """
        found = self._wait("")
        if found is None or found.endpoint_status != "InService":
            raise StageError(f"no endpoint {self.endpoint} is in service")
        before = str(found.endpoint_config_name)
        earlier = (name for name in self._tags.earlier() if name != before)
        config = self._configs.find(to, before) if to else next(earlier, None)
        if config is None:
            raise StageError(f"nothing was deployed to {self.endpoint} before {before}",
                             fix="specify a digest: --to DIGEST")  # fmt: skip
        described = self._configs.describe(config)
        container = self._configs.model_of(described).get("PrimaryContainer") or {}
        smoke_test = stored_test(described, container)
        self._note_served(before, config)
        self._update_to(config, before, at_once=True)
        refusal = _refusal(smoke_test) if smoke_test is not None else None
        if refusal is not None:
            done = self._undone(config, before)
            raise GateError(f"{config}: {refusal.message}; {done}", fix=refusal.fix) from refusal
        self._scaled.follow(config)
        digest = self._configs.tags(config).get(f"{TAG}:digest", "")
        self._tags.note({f"{TAG}:digest": digest}, tested=config if smoke_test else "")
        kind = "package" if container.get("ModelDataUrl") else "image"
        said = "smoke-tested" if smoke_test else "not smoke-tested: no smoke.npz of it can be read in S3"
        return f"{self.endpoint} serves {config} ({kind} {digest[:12]}) instead of {before}; {said}"


def _refusal(smoke_test: SmokeTest) -> StageError | None:
    """Return why a smoke test doesn't pass, or can't be done; None where it passes."""
    try:
        with plainly():
            smoke_test()
    except GateError as error:
        return error
    except StageError as error:
        return StageError(f"the smoke test can't be done: {error.message}", fix=error.fix)
    return None


def _pending(endpoint: Any) -> str:
    """Return the config that an update, or the way back from one, is about."""
    if endpoint.endpoint_status not in ("Updating", "RollingBack"):
        return ""
    return str(getattr(endpoint.pending_deployment_summary, "endpoint_config_name", ""))
