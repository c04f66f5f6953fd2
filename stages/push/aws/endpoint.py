"""Converge an endpoint and its config to one model, and take it back.

The endpoint is the pointer: it is moved last, smoke-tested, and moved back where the test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deploy_runner.sdk import ConflictError, Finding, GateError, StageError

from . import drift, objects
from .autoscaling import Autoscaling, Scaling
from .client import Aws
from .packed_model import GONE, TAG, PackedModel, named, or_none
from .settings import WEIGHT
from .waiting import show, waiting

_VARIANT = "main"
_SCALING_TAG = f"{TAG}:autoscaling"
_SETTINGS = (
    "InstanceType", "InitialInstanceCount", "ServerlessConfig", "ContainerStartupHealthCheckTimeoutInSeconds",
    "ModelDataDownloadTimeoutInSeconds", "VolumeSizeInGB", "InferenceAmiVersion", "KmsKeyId",
    "AsyncInferenceConfig", "DataCaptureConfig", "ShadowProductionVariants", "VpcConfig",
    "EnableNetworkIsolation",
)  # fmt: skip
_UNSETTLED = ("Creating", "Updating", "SystemUpdating", "RollingBack")


class Deployment:
    """An endpoint, and the config that it is to have.

    `variant` holds the instances or the serverless size, `config` further arguments of the endpoint
    config, `update` the deployment config of an update: all in AWS's words. `scaling` is how many instances
    there are to be later on. `adopt` allows to move an endpoint that something else has made.
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
    ) -> None:
        self._aws, self._ctx, self._transcript = aws, aws.ctx, aws.transcript
        self._client = aws.session.client("sagemaker")
        self._model = model
        self._variant = dict(variant)
        self._config = dict(config)
        self._scaling = scaling
        self._autoscaling = Autoscaling(aws, endpoint=endpoint, variant=_VARIANT)
        self._update = dict(update)
        self._adopt = adopt
        self._wait_s = wait_s
        self.endpoint = endpoint
        scaled = [str(scaling)] if scaling else []
        self.config_name = named(endpoint, "config", model.name, self._variant, self._config, *scaled)

    def make_config(self) -> None:
        """Make the endpoint config unless it is there. Raises ConflictError where it differs.

        By boto3: sagemaker-core 2.27 sends a serverless variant's memory as `MemorySizeInMb`, which is
        no parameter of AWS.
        """
        variant = {
            "VariantName": _VARIANT,
            "ModelName": self._model.name,
            "InitialVariantWeight": WEIGHT,
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
        if [v["ModelName"] for v in found["ProductionVariants"]] != [self._model.name]:
            raise ConflictError(
                f"the endpoint config {self.config_name} already exists and refers to another model"
            )
        what = f"the endpoint config {self.config_name}"
        drift.require_same(what, self._variant | self._config, found["ProductionVariants"][0] | found)

    def _config_tags(self) -> list[dict[str, str]]:
        scaled = [{"Key": _SCALING_TAG, "Value": str(self._scaling)}] if self._scaling else []
        return self._model.aws_tags + scaled

    def move(self, smoke_test: Callable[[], None] | None) -> None:
        """Point the endpoint at the config, wait, and test it.

        Where the test fails, or AWS takes the update back, the endpoint serves what it served before
        and GateError is raised; an endpoint that is new is removed. Raises ConflictError where somebody
        else has made or moved the endpoint meanwhile: it stays as it is.
        """
        before = self._settled()
        earlier = self._previous() if before is not None else None
        if self._scaling is not None:
            self._autoscaling.require_own()
        if before is None:
            self._create()
        elif before != self.config_name:
            self._require_own()
            self._update_to(self.config_name, before, earlier=earlier)
        if smoke_test is not None:
            try:
                smoke_test()
            except (GateError, StageError) as error:
                self._require_ours()
                raise GateError(
                    f"{error.message}; {self._take_back(before, earlier)}", fix=error.fix
                ) from error
            self._ctx.log("the smoke test has passed")
        self._require_ours()
        self._scale_as(self.config_name)
        self._tag_endpoint()

    def _require_own(self) -> None:
        if not self._adopt and f"{TAG}:digest" not in self._endpoint_tags():
            raise ConflictError(
                f"the endpoint {self.endpoint} already exists and was not created by deploy-runner",
                fix="set `with: {adopt: true}` to take it over, or choose another name",
            )

    def _require_ours(self) -> None:
        """Raise ConflictError where the endpoint has another config than this push gave it."""
        found = self._describe()
        if found is None or found.endpoint_config_name != self.config_name:
            said = "is gone" if found is None else f"has the config {found.endpoint_config_name}"
            raise ConflictError(f"the endpoint {self.endpoint} {said}, not {self.config_name}: somebody else "
                                f"has changed it meanwhile, and it stays as it is",
                                fix="let one push at a time write to an endpoint")  # fmt: skip

    def _describe(self) -> Any:
        from sagemaker.core.resources import Endpoint

        return or_none(lambda: Endpoint.get(endpoint_name=self.endpoint, **self._aws.where))

    def _settled(self) -> str | None:
        """Return the config that the endpoint serves, once nothing is under way; None without one.

        An endpoint that failed to start can't be updated: it is removed and recreated.
        """
        found = self._wait()
        if found is None:
            return None
        if found.endpoint_status == "Failed":
            self._ctx.log(f"the endpoint {self.endpoint} had failed: {found.failure_reason}; it is recreated")
            self._delete()
            return None
        if found.endpoint_status != "InService":
            raise StageError(f"the endpoint {self.endpoint} is {found.endpoint_status}")
        return str(found.endpoint_config_name)

    def _wait(self) -> Any:
        """Wait until the endpoint has settled, with progress; return it, or None if there is none."""
        for took in waiting(self._wait_s):
            found = self._describe()
            if found is None or found.endpoint_status not in _UNSETTLED:
                return found
            show(self._ctx, self.endpoint, found.endpoint_status, took)
        raise StageError(
            f"the endpoint {self.endpoint} is still {found.endpoint_status} after {self._wait_s:.0f} s",
            fix="run again: the next run resumes waiting",
        )

    def _create(self) -> None:
        named = {"EndpointName": self.endpoint, "EndpointConfigName": self.config_name}
        objects.unless(
            lambda: self._client.create_endpoint(**named, Tags=self._model.aws_tags), "already exist"
        )
        self._require_ours()
        self._transcript.add("sagemaker:CreateEndpoint", name=self.endpoint, config=self.config_name)
        found = self._wait()
        if found is not None and found.endpoint_status == "InService":
            return
        reason = "" if found is None else found.failure_reason
        self._delete()
        raise GateError(f"the endpoint {self.endpoint} failed to start and was removed: {reason}")

    def _update_to(self, config: str, before: str, *, earlier: str | None, at_once: bool = False) -> None:
        """Update, and wait. Raises GateError where AWS has rolled it back.

        `earlier` is what a later rollback goes back to where this one ends with the endpoint as it was.
        """
        self._ctx.log(f"{self.endpoint}: {before} → {config}")
        self._remember(before)
        arguments: dict[str, Any] = {"EndpointName": self.endpoint, "EndpointConfigName": config}
        if self._update and not at_once:
            arguments["DeploymentConfig"] = self._update
        if self._keeps_scaling(before, config):
            arguments["RetainAllVariantProperties"] = True
        objects.unless(lambda: self._client.update_endpoint(**arguments), "in-progress", "already uses")
        self._transcript.add("sagemaker:UpdateEndpoint", name=self.endpoint, config=config)
        after = self._settled()
        if after not in (config, before):
            raise ConflictError(f"somebody else has moved the endpoint {self.endpoint} to {after} meanwhile",
                                fix="let one push at a time write to an endpoint")  # fmt: skip
        if after != config:
            self._remember(earlier)
            self._scale_as(before)
            raise GateError(f"AWS rolled back the update of {self.endpoint}: its new containers did not "
                            f"start, or an alarm fired; it serves {before}",
                            fix="see the endpoint's CloudWatch logs")  # fmt: skip

    def _keeps_scaling(self, before: str, after: str) -> bool:
        """Say whether an update keeps the instances that there are, and make the target ready for it.

        AWS refuses to change the type of instances that are scaled:
        https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling-update.html
        """
        if self._scaling_of(before) is None:
            return False
        wanted = self._scaling_of(after)
        if wanted is None or self._instance_type(before) != self._instance_type(after):
            self._autoscaling.release()
        return wanted is not None

    def _scale_as(self, config: str) -> None:
        """Let the scalable target follow the config that is in force."""
        if (scaling := self._scaling_of(config)) is not None:
            self._autoscaling.apply(scaling)

    def _scaling_of(self, config: str) -> Scaling | None:
        if config == self.config_name:
            return self._scaling
        found = or_none(lambda: self._client.describe_endpoint_config(EndpointConfigName=config))
        text = self._tags_of(found["EndpointConfigArn"]).get(_SCALING_TAG) if found else None
        return Scaling.read(text) if text else None

    def _instance_type(self, config: str) -> Any:
        found = self._client.describe_endpoint_config(EndpointConfigName=config)
        return found["ProductionVariants"][0].get("InstanceType")

    def _take_back(self, before: str | None, earlier: str | None) -> str:
        """Undo the move; return what was done. What was refused is never what a rollback goes back to."""
        previous = before if before != self.config_name else self._previous()
        if previous is None or previous == self.config_name:
            if before is None:
                self._delete()
                return f"the new endpoint {self.endpoint} was removed"
            return f"the endpoint {self.endpoint} has no earlier version to serve"
        self._update_to(previous, self.config_name, earlier=earlier, at_once=True)
        self._remember(earlier if before != self.config_name else None)
        self._scale_as(previous)
        return f"rolled back: {self.endpoint} serves {previous} again"

    def _delete(self) -> None:
        objects.unless(lambda: self._client.delete_endpoint(EndpointName=self.endpoint), GONE)
        self._transcript.add("sagemaker:DeleteEndpoint", name=self.endpoint)
        for _ in waiting(self._wait_s):
            if self._describe() is None:
                return
        raise StageError(f"the endpoint {self.endpoint} can't be removed")

    def _arn(self) -> str:
        return str(self._client.describe_endpoint(EndpointName=self.endpoint)["EndpointArn"])

    def _endpoint_tags(self) -> dict[str, str]:
        return self._tags_of(self._arn())

    def _tags_of(self, arn: str) -> dict[str, str]:
        pages = self._client.get_paginator("list_tags").paginate(ResourceArn=arn)
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        rows = [{"Key": key, "Value": value} for key, value in tags.items()]
        self._client.add_tags(ResourceArn=self._arn(), Tags=rows)

    def _remember(self, config: str | None) -> None:
        """Note the config that a rollback goes back to, or that there is none."""
        key = f"{TAG}:previous"
        if config is not None:
            self._set_tags({key: config})
        else:
            self._client.delete_tags(ResourceArn=self._arn(), TagKeys=[key])

    def _tag_endpoint(self) -> None:
        known = self._endpoint_tags()
        if known.get(f"{TAG}:digest") != self._model.digest:
            self._set_tags(self._model.tags)

    def _previous(self) -> str | None:
        return self._endpoint_tags().get(f"{TAG}:previous")

    def findings(self) -> list[Finding]:
        """Return what is deployed beside what the pipeline says."""
        found = self._describe()
        if found is None:
            return [Finding(f"endpoint {self.endpoint}", "InService", "missing")]
        rows = [Finding(f"endpoint {self.endpoint}", "InService", str(found.endpoint_status))]
        config = self._client.describe_endpoint_config(EndpointConfigName=found.endpoint_config_name)
        variant = config["ProductionVariants"][0]
        model = self._client.describe_model(ModelName=variant["ModelName"])
        container = model["PrimaryContainer"]
        rows.append(Finding("package", self._model.url, container["ModelDataUrl"]))
        rows.append(Finding("image", self._model.image, container["Image"]))
        wanted = self._variant | self._config | self._model.network
        others = _SETTINGS if found.endpoint_config_name != self.config_name else ()
        rows += drift.rows(dict.fromkeys([*wanted, *others]), wanted, config | model | variant)
        rows += self._scaling_findings(str(found.endpoint_config_name))
        rows.append(Finding("endpoint config", self.config_name, str(found.endpoint_config_name)))
        return rows

    def _scaling_findings(self, config: str) -> list[Finding]:
        scaled = self._scaling or self._scaling_of(config)
        return [self._autoscaling.finding(self._scaling)] if scaled else []

    def roll_back(self, to: str) -> str:
        """Serve the config before, or the newest whose digest begins with `to`; return its name."""
        before = self._settled()
        if before is None:
            raise StageError(f"no endpoint {self.endpoint} is in service")
        config = self._config_of(to, before) if to else self._previous()
        if config is None or config == before:
            raise StageError(f"nothing was deployed to {self.endpoint} before {before}",
                             fix="specify a digest: --to DIGEST")  # fmt: skip
        self._update_to(config, before, earlier=self._previous(), at_once=True)
        self._scale_as(config)
        described = self._client.describe_endpoint_config(EndpointConfigName=config)
        digest = self._tags_of(described["EndpointConfigArn"]).get(f"{TAG}:digest", "")
        self._set_tags({f"{TAG}:digest": digest})
        return f"{self.endpoint} serves {config} (package {digest[:12]}) instead of {before}"

    def _config_of(self, to: str, before: str) -> str:
        known: dict[str, None] = {}
        pages = self._client.get_paginator("list_endpoint_configs").paginate(
            NameContains=f"{self.endpoint}-", SortBy="CreationTime", SortOrder="Descending"
        )
        for row in (row for page in pages for row in page["EndpointConfigs"]):
            digest = self._tags_of(row["EndpointConfigArn"]).get(f"{TAG}:digest", "")
            if digest.startswith(to) and row["EndpointConfigName"] != before:
                return str(row["EndpointConfigName"])
            known[digest[:12]] = None
        shown = ", ".join(digest for digest in known if digest) or "none"
        raise StageError(
            f"no package {to} was deployed to {self.endpoint}", fix=f"deployed packages: {shown}"
        )
