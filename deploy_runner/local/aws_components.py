"""Inference components: models that share the instances of an endpoint, whose config names no model.

moto has none of them. A component's update that fails leaves it Failed with what was asked for: whoever
made it takes it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .aws_autoscaling import COPIES, forget_targets
from .aws_fleets import Container, refuse, resource_arn

__all__ = ["component_of", "components_on", "extend_components"]

_KIND = "inference-component"
_NO_PING = "The container of the inference component did not pass the ping health check."
_LOCK = threading.RLock()


@dataclass(slots=True)
class Component:
    """A component; `container` serves it, `next_container` is to."""

    arn: str
    endpoint: Any
    variant: str
    specification: dict[str, Any]
    copies: int
    container: Container
    tags: list[dict[str, str]]
    status: str = "Creating"
    reason: str = ""
    next_container: Container | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> str:
        """Return its name."""
        return self.arn.rpartition("/")[2]

    def advance(self) -> None:
        """Take it one step further, as far as its container is."""
        starting = self.next_container or self.container
        if self.status in ("Creating", "Updating") and starting.state != "starting":
            self.status = "InService" if starting.state == "ready" else "Failed"
            self.reason = "" if self.status == "InService" else _NO_PING
            if self.next_container is not None:
                self.container.stop()
                self.container, self.next_container = self.next_container, None

    def described(self) -> dict[str, Any]:
        """Return DescribeInferenceComponent's answer."""
        told: dict[str, Any] = {
            "InferenceComponentName": self.name, "InferenceComponentArn": self.arn,
            "EndpointName": self.endpoint.endpoint_name, "EndpointArn": self.endpoint.arn,
            "VariantName": self.variant, "Specification": self.specification,
            "RuntimeConfig": {"DesiredCopyCount": self.copies, "CurrentCopyCount": self.copies},
            "CreationTime": self.created, "LastModifiedTime": self.created,
            "InferenceComponentStatus": self.status,
        }  # fmt: skip
        return told | ({"FailureReason": self.reason} if self.reason else {})


def extend_components(backend: Any, response: Any) -> None:
    """Patch moto's SageMaker backend and its responses."""
    original = backend._get_resource_from_arn

    def get_resource(self: Any, arn: str) -> Any:
        return _known(self, arn) if f":{_KIND}/" in arn else original(self, arn)

    backend._get_resource_from_arn = get_resource
    for name, action in _ACTIONS.items():
        setattr(response, name, _answering(action))


def _answering(action: Callable[[Any, Callable[[str], Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    def answer(self: Any) -> Any:
        from moto.core.responses import ActionResult

        with _LOCK:
            return ActionResult(action(self.sagemaker_backend, self._get_param))

    return answer


def _create(backend: Any, given: Callable[[str], Any]) -> dict[str, Any]:
    name, endpoint = given("InferenceComponentName"), backend.endpoints.get(given("EndpointName"))
    arn = resource_arn(backend, _KIND, name)
    if name in _components(backend):
        raise refuse(f'Cannot create already existing inference component "{arn}".')
    if endpoint is None or endpoint.endpoint_status != "InService":
        raise refuse(f'Endpoint "{given("EndpointName")}" must be InService.')
    if "ModelName" in endpoint.fleet.config.production_variants[0]:
        raise refuse("Inference components are not supported on an endpoint whose variants name a model.")
    specification = given("Specification")
    _components(backend)[name] = Component(
        arn=arn, endpoint=endpoint, variant=given("VariantName"), specification=specification,
        copies=given("RuntimeConfig")["CopyCount"], container=_start(backend, specification),
        tags=given("Tags") or [],
    )  # fmt: skip
    return {"InferenceComponentArn": arn}


def _describe(backend: Any, given: Callable[[str], Any]) -> dict[str, Any]:
    component = _known(backend, given("InferenceComponentName"))
    component.advance()
    return component.described()


def _update(backend: Any, given: Callable[[str], Any]) -> dict[str, Any]:
    component = _settled(backend, given("InferenceComponentName"))
    if (specification := given("Specification")) is not None:
        component.next_container = _start(backend, specification)
        component.specification, component.status = specification, "Updating"
    if (runtime := given("RuntimeConfig")) is not None:
        component.copies = runtime["CopyCount"]
    return {"InferenceComponentArn": component.arn}


def _update_copies(backend: Any, given: Callable[[str], Any]) -> dict[str, Any]:
    component = _settled(backend, given("InferenceComponentName"))
    component.copies = given("DesiredRuntimeConfig")["CopyCount"]
    return {"InferenceComponentArn": component.arn}


def _delete(backend: Any, given: Callable[[str], Any]) -> dict[str, Any]:
    component = _known(backend, given("InferenceComponentName"))
    for container in (component.container, component.next_container):
        if container is not None:
            container.stop()
    forget_targets(backend, f"{_KIND}/{component.name}", COPIES)
    del _components(backend)[component.name]
    return {}


def _list(backend: Any, given: Callable[[str], Any]) -> dict[str, Any]:
    wanted = given("EndpointNameEquals")
    rows = [c.described() for c in _components(backend).values()
            if wanted in (None, c.endpoint.endpoint_name)]  # fmt: skip
    summarized = ("Specification", "RuntimeConfig", "FailureReason")
    return {
        "InferenceComponents": [
            {name: value for name, value in row.items() if name not in summarized} for row in rows
        ]
    }


_ACTIONS = {
    "create_inference_component": _create,
    "describe_inference_component": _describe,
    "update_inference_component": _update,
    "update_inference_component_runtime_config": _update_copies,
    "delete_inference_component": _delete,
    "list_inference_components": _list,
}


def _components(backend: Any) -> dict[str, Component]:
    found: dict[str, Component] = vars(backend).setdefault("inference_components", {})
    return found


def _known(backend: Any, name: str) -> Component:
    found = _components(backend).get(name.rpartition("/")[2])
    if found is None:
        raise refuse(f'Could not find inference component "{resource_arn(backend, _KIND, name)}".')
    return found


def _settled(backend: Any, name: str) -> Component:
    component = _known(backend, name)
    component.advance()
    if component.status not in ("InService", "Failed"):
        raise refuse(f'Cannot update in-progress inference component "{component.arn}".')
    return component


def _start(backend: Any, specification: Mapping[str, Any]) -> Container:
    name = specification["ModelName"]
    if name not in backend._models:
        raise refuse(f'Could not find model "{resource_arn(backend, "model", name)}".')
    return Container(backend, backend._models[name])


def components_on(backend: Any, endpoint: str) -> list[str]:
    """Return the names of an endpoint's components."""
    return [c.name for c in _components(backend).values() if c.endpoint.endpoint_name == endpoint]


def component_of(backend: Any, name: str) -> Component | None:
    """Return a component that can be asked, or None."""
    found = _components(backend).get(name)
    if found is None:
        return None
    found.advance()
    return None if found.status in ("Creating", "Failed") or not found.copies else found
