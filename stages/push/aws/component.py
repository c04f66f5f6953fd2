"""Converge an inference component to one model, on an endpoint that hosts it, and take it back.

What an endpoint config is to an endpoint, a model is to a component: its name holds the digest of all that
the component is set up with, and its tags say what that is. AWS's documentation doesn't say what an update
that fails leaves: it is taken back here, whatever it left.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from deploy_runner.sdk import ConflictError, Finding, GateError, StageError

from . import drift, objects
from .autoscaling import Autoscaling, Scaled, Scaling
from .client import Aws
from .endpoint import VARIANT, Deployment, SmokeTest
from .endpoint_tags import EndpointTags, tags_of
from .packed_model import GONE, TAG, PackedModel, name_part, or_none
from .settings import EndpointParams
from .waiting import show, waiting

__all__ = ["ComponentDeployment", "carried"]

_COMPONENT_TAG = f"{TAG}:component"
_MEMBERS = {
    "memory": ("ComputeResourceRequirements", "MinMemoryRequiredInMb", int),
    "cpus": ("ComputeResourceRequirements", "NumberOfCpuCoresRequired", float),
    "accelerators": ("ComputeResourceRequirements", "NumberOfAcceleratorDevicesRequired", float),
    "startup": ("StartupParameters", "ContainerStartupHealthCheckTimeoutInSeconds", int),
    "download": ("StartupParameters", "ModelDataDownloadTimeoutInSeconds", int),
}


def carried(params: EndpointParams) -> dict[str, str]:
    """Return what the model of a component says of it, by the name of its tag; nothing without one."""
    size = params.component
    if size is None:
        return {}
    said = {
        "memory": size.memory_mb, "cpus": size.cpus, "accelerators": size.accelerators,
        "startup": params.startup_timeout_s, "download": params.download_timeout_s,
    }  # fmt: skip
    text = " ".join(f"{name}={value}" for name, value in said.items() if value is not None)
    scaling = params.scaling()
    return {"component": text} | ({"autoscaling": str(scaling)} if scaling else {})


def _specification(model: str, text: str) -> dict[str, Any]:
    """Return a component's Specification: a model, and what its tag says."""
    specification: dict[str, Any] = {"ModelName": model}
    for name, value in (part.split("=", 1) for part in text.split()):
        group, member, kind = _MEMBERS[name]
        specification.setdefault(group, {})[member] = kind(value)
    return specification


class _Models:
    """The models that pushes to one component have made, as EndpointConfigs of an endpoint."""

    def __init__(self, client: Any, component: str) -> None:
        self._client = client
        self._component = component

    def describe(self, name: str) -> dict[str, Any]:
        return dict(self._client.describe_model(ModelName=name))

    def model_of(self, described: Mapping[str, Any]) -> dict[str, Any]:
        return dict(described)

    def tags(self, name: str) -> dict[str, str]:
        found = or_none(lambda: self.describe(name))
        return tags_of(self._client, found["ModelArn"]) if found else {}

    def instance_type(self, name: str) -> str | None:
        return None  # Copies scale whatever they run on.

    def find(self, to: str, before: str) -> str:
        known: dict[str, None] = {}
        own = name_part(self._component)
        pages = self._client.get_paginator("list_models").paginate(
            NameContains=f"{own}-", SortBy="CreationTime", SortOrder="Descending"
        )
        for row in (row for page in pages for row in page["Models"]):
            name = str(row["ModelName"])
            if name.rpartition("-")[0] != own:
                continue
            tags = tags_of(self._client, row["ModelArn"])
            digest = tags.get(f"{TAG}:digest", "") if _COMPONENT_TAG in tags else ""
            if digest and digest.startswith(to) and name != before:
                return name
            known[digest[:12]] = None
        shown = ", ".join(digest for digest in known if digest) or "none"
        raise StageError(
            f"no package {to} was deployed to {self._component}", fix=f"deployed packages: {shown}"
        )


class _Tags(EndpointTags):
    def _arn(self) -> str:
        found = self._client.describe_inference_component(InferenceComponentName=self._endpoint)
        return str(found["InferenceComponentArn"])


class ComponentDeployment(Deployment):
    """A component of `host`, which has its name; a model takes the place of an endpoint's config."""

    def __init__(
        self, aws: Aws, model: PackedModel, host: Deployment, *, copies: int, component: str,
        scaling: Scaling | None, adopt: bool, wait_s: float,
    ) -> None:  # fmt: skip
        name = host.endpoint
        super().__init__(
            aws, model, endpoint=name, variant={}, config={}, scaling=scaling, update={}, adopt=adopt,
            wait_s=wait_s,
        )  # fmt: skip
        self._host = host
        self._copies = copies
        self._component = component
        self._tags = _Tags(self._client, name)
        self._models = _Models(self._client, name)
        self._configs = self._models  # type: ignore[assignment]
        self.config_name = model.name
        self._scaled = Scaled(Autoscaling(aws, name=name, variant=None), self._models, {model.name: scaling})

    def make_config(self) -> None:
        """Make the endpoint's config; a component needs none."""
        self._host.make_config()

    def move(self, smoke_test: SmokeTest | None) -> None:
        """Converge the endpoint, then the component, as Deployment.move does."""
        self._host.move(None)
        if smoke_test is not None:
            self._wake()
        super().move(smoke_test)

    def _wake(self) -> None:
        """Have a copy that can be tested: a component that scales to zero may have none."""
        found = self._raw()
        if found is None or found["InferenceComponentStatus"] != "InService":
            return
        if found["RuntimeConfig"]["DesiredCopyCount"] > 0:
            return
        self._client.update_inference_component_runtime_config(
            InferenceComponentName=self.endpoint, DesiredRuntimeConfig={"CopyCount": 1}
        )
        self._transcript.add("sagemaker:UpdateInferenceComponentRuntimeConfig", name=self.endpoint, copies=1)
        for took in waiting(self._wait_s):
            found = self._raw()
            if found is None or found["RuntimeConfig"]["CurrentCopyCount"] > 0:
                return
            show(self._ctx, self.endpoint, "no copy yet", took)
        raise StageError(f"{self.endpoint} has no copy after {self._wait_s:.0f} s", fix="run again")

    def _raw(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = or_none(
            lambda: self._client.describe_inference_component(InferenceComponentName=self.endpoint)
        )
        return found

    def _describe(self) -> Any:
        found = self._raw()
        if found is None:
            return None
        if found["EndpointName"] != self.endpoint:
            raise ConflictError(f"the component {self.endpoint} is on the endpoint {found['EndpointName']}",
                                fix="choose another name for `endpoint`")  # fmt: skip
        return SimpleNamespace(
            endpoint_status=found["InferenceComponentStatus"],
            endpoint_config_name=found["Specification"].get("ModelName", ""),
            failure_reason=found.get("FailureReason", ""),
            pending_deployment_summary=None,
        )

    def _asked_for(self, model: str) -> dict[str, Any]:
        text = self._component if model == self.config_name else self._models.tags(model)[_COMPONENT_TAG]
        return _specification(model, text)

    def _create(self) -> None:
        objects.unless(
            lambda: self._client.create_inference_component(
                InferenceComponentName=self.endpoint, EndpointName=self.endpoint, VariantName=VARIANT,
                Specification=self._asked_for(self.config_name), RuntimeConfig={"CopyCount": self._copies},
                Tags=self._model.aws_tags,
            ),
            "already exist",
        )  # fmt: skip
        self._require_serves(self.config_name)
        self._transcript.add("sagemaker:CreateInferenceComponent", name=self.endpoint, model=self.config_name)
        found = self._wait(self.config_name)
        if found is not None and found.endpoint_status == "InService":
            return
        reason = "" if found is None else found.failure_reason
        self._delete()
        raise GateError(f"the component {self.endpoint} failed to start and was removed: {reason}")

    def _update_to(self, config: str, before: str, *, at_once: bool = False) -> None:
        self._ctx.log(f"{self.endpoint}: {before} → {config}")
        self._scaled.keeps(before, config)
        found = self._ask_for(config)
        if found.endpoint_status == "InService" and found.endpoint_config_name == config:
            return
        if found.endpoint_config_name not in (config, before):
            raise ConflictError(f"somebody else has moved the component {self.endpoint} meanwhile",
                                fix="let one push at a time write to it")  # fmt: skip
        reason = found.failure_reason or "AWS rolled it back"
        if (found.endpoint_status, found.endpoint_config_name) != ("InService", before):
            found = self._ask_for(before)
        self._scaled.follow(before)
        serves = f"it serves {before}" if found.endpoint_status == "InService" else "it can't be taken back"
        raise GateError(f"the update of the component {self.endpoint} has failed: {reason}; {serves}",
                        fix="see the component's CloudWatch logs")  # fmt: skip

    def _ask_for(self, model: str) -> Any:
        """Update the component to a model and wait; return it as it is then."""
        arguments = {"InferenceComponentName": self.endpoint, "Specification": self._asked_for(model)}
        if objects.unless(lambda: self._client.update_inference_component(**arguments), "in-progress"):
            self._require_moving_to(model)
        self._transcript.add("sagemaker:UpdateInferenceComponent", name=self.endpoint, model=model)
        found = self._wait(model)
        if found is None:
            raise ConflictError(f"the component {self.endpoint} was deleted meanwhile")
        self._wake()
        return found

    def _delete(self) -> None:
        objects.unless(
            lambda: self._client.delete_inference_component(InferenceComponentName=self.endpoint), GONE
        )
        self._transcript.add("sagemaker:DeleteInferenceComponent", name=self.endpoint)
        for _ in waiting(self._wait_s):
            if self._raw() is None:
                return
        raise StageError(f"the component {self.endpoint} can't be removed")

    def findings(self, *, tested: bool) -> list[Finding]:
        """Return what is deployed, the endpoint first, beside what the pipeline says."""
        rows, found = self._host.findings(tested=False), self._raw()
        status = found["InferenceComponentStatus"] if found else "missing"
        rows.append(Finding(f"component {self.endpoint}", "InService", str(status)))
        if found is None:
            return rows
        served = str(found["Specification"].get("ModelName", ""))
        rows += self._package_findings(or_none(lambda: self._models.describe(served)) or {})
        wanted = self._asked_for(self.config_name)
        rows += drift.rows(wanted, wanted, found["Specification"])
        rows += self._scaled.findings(served, self._scaling)
        if tested:
            passed = self._tags.tested(served)
            rows.append(Finding("smoke test", "passed", "passed" if passed else "not passed"))
        return rows

    def _require_kind(self, before: str) -> None:
        pass
