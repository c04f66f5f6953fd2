"""Endpoints that serve: the local AWS starts a package's container for each, as SageMaker does.

moto answers `invoke_endpoint` with a constant, has no UpdateEndpoint, and its endpoints are in
service at once. Here an endpoint goes through Creating or Updating while its container starts, is
Failed where the container doesn't, shifts traffic step by step, rolls back on an alarm, and its
invocations, asynchronous ones and transform jobs go through the container.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from .aws_autoscaling import INSTANCES, forget_targets, is_scaled
from .aws_capture import Exchange, capture, is_sampled
from .aws_components import component_of, components_on
from .aws_fleets import (
    Container,
    Fleet,
    container_of,
    read_object,
    refuse,
    resource_arn,
    store_object,
)

__all__ = ["extend_endpoints"]

_NO_PING = (
    "The primary container for production variant {} did not pass the ping health check. "
    "Please check CloudWatch logs for this endpoint."
)
_INSTANCE_COUNTS = ("CurrentInstanceCount", "DesiredInstanceCount")
_LOCK = threading.RLock()


def extend_endpoints(backend: Any, response: Any, runtime: Any) -> None:
    """Patch moto's classes: the SageMaker backend and its responses, and the runtime's responses."""
    _serve_endpoints(backend)
    _answer_updates(response)
    _answer_invocations(runtime)
    _run_transform_jobs(backend)


def _serve_endpoints(backend: Any) -> None:
    create, describe, delete = backend.create_endpoint, backend.describe_endpoint, backend.delete_endpoint

    def create_endpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        endpoint = create(self, *args, **kwargs)
        config = self.endpoint_configs[endpoint.endpoint_config_name]
        endpoint.endpoint_status = "Creating"
        endpoint.fleet = Fleet(container_of(self, config), config)
        return endpoint

    def describe_endpoint(self: Any, endpoint_name: str) -> dict[str, Any]:
        with _LOCK:
            endpoint = _known(self, endpoint_name)
            _advance(self, endpoint)
            answer: dict[str, Any] = {
                name: value for name, value in dict(describe(self, endpoint_name)).items() if name != "Fleet"
            }
        if endpoint.fleet.next_config is not None:
            name = endpoint.fleet.next_config.endpoint_config_name
            answer["PendingDeploymentSummary"] = {"EndpointConfigName": name}
        return answer

    def delete_endpoint(self: Any, endpoint_name: str) -> None:
        fleet = _known(self, endpoint_name).fleet
        if hosted := components_on(self, endpoint_name):
            raise refuse(f"Cannot delete an endpoint with inference components: {', '.join(hosted)}.")
        for container in (fleet.container, fleet.next_container):
            if container is not None:
                container.stop()
        delete(self, endpoint_name)
        forget_targets(self, f"endpoint/{endpoint_name}/", INSTANCES)

    backend.create_endpoint = create_endpoint
    backend.describe_endpoint = describe_endpoint
    backend.delete_endpoint = delete_endpoint


def _known(backend: Any, name: str) -> Any:
    if name not in backend.endpoints:
        raise refuse(f'Could not find endpoint "{resource_arn(backend, "endpoint", name)}".')
    return backend.endpoints[name]


def _advance(backend: Any, endpoint: Any) -> None:
    """Take an endpoint one step further, as far as its containers are."""
    fleet = endpoint.fleet
    if endpoint.endpoint_status == "Creating" and fleet.container.state != "starting":
        ready = fleet.container.state == "ready"
        endpoint.endpoint_status = "InService" if ready else "Failed"
        variant = fleet.config.production_variants[0]["VariantName"]
        endpoint.failure_reason = None if ready else _NO_PING.format(variant)
    elif endpoint.endpoint_status == "RollingBack":
        endpoint.endpoint_status = "InService"
        _forget_update(fleet)
    elif endpoint.endpoint_status == "Updating":
        _shift(backend, endpoint)


def _shift(backend: Any, endpoint: Any) -> None:
    fleet = endpoint.fleet
    if fleet.next_container.state == "failed" or _alarmed(backend, fleet.alarms):
        endpoint.endpoint_status = "RollingBack"
        fleet.shifted = 0
        fleet.next_container.stop()
    elif fleet.next_container.state == "ready":
        fleet.shifted = next(fleet.steps, 0)
        if not fleet.shifted:
            _swap(endpoint)


def _swap(endpoint: Any) -> None:
    from moto.core.utils import utcnow

    fleet = endpoint.fleet
    fleet.container.stop()
    fleet.container, fleet.config = fleet.next_container, fleet.next_config
    endpoint.endpoint_config_name = fleet.config.endpoint_config_name
    endpoint.production_variants = endpoint._process_production_variants(fleet.config.production_variants)
    if fleet.retained:
        endpoint.production_variants[0] |= dict.fromkeys(_INSTANCE_COUNTS, fleet.retained)
    endpoint.last_modified_time = utcnow()
    endpoint.endpoint_status = "InService"
    _forget_update(fleet)


def _forget_update(fleet: Fleet) -> None:
    fleet.next_container = fleet.next_config = None
    fleet.alarms, fleet.steps, fleet.shifted, fleet.retained = (), iter(()), 0, 0


def _alarmed(backend: Any, names: tuple[str, ...]) -> bool:
    from moto.cloudwatch.models import cloudwatch_backends

    alarms = cloudwatch_backends[backend.account_id][backend.region_name].alarms
    return any(name in alarms and alarms[name].state_value == "ALARM" for name in names)


def _answer_updates(response: Any) -> None:
    def update_endpoint(self: Any) -> Any:
        from moto.core.responses import ActionResult

        name, config = self._get_param("EndpointName"), self._get_param("EndpointConfigName")
        with _LOCK:
            arn = _update(self.sagemaker_backend, name, config, self._get_param("DeploymentConfig") or {},
                          retain=bool(self._get_param("RetainAllVariantProperties")))  # fmt: skip
        return ActionResult({"EndpointArn": arn})

    response.update_endpoint = update_endpoint


def _update(backend: Any, name: str, config: str, deployment: Mapping[str, Any], *, retain: bool) -> str:
    endpoint = _known(backend, name)
    if config not in backend.endpoint_configs:
        arn = resource_arn(backend, "endpoint-config", config)
        raise refuse(f'Could not find endpoint configuration "{arn}".')
    if endpoint.endpoint_status != "InService":
        raise refuse(f'Cannot update in-progress endpoint "{endpoint.arn}".')
    if endpoint.endpoint_config_name == config:
        raise refuse("Cannot update endpoint with the endpoint configuration it already uses.")
    fleet = endpoint.fleet
    _refuse_kind(backend, endpoint, fleet.config, backend.endpoint_configs[config])
    fleet.retained = endpoint.production_variants[0].get("DesiredInstanceCount", 0) if retain else 0
    fleet.steps = _steps(deployment.get("BlueGreenUpdatePolicy") or {})
    alarms = (deployment.get("AutoRollbackConfiguration") or {}).get("Alarms") or []
    fleet.alarms = tuple(alarm["AlarmName"] for alarm in alarms)
    fleet.next_config = backend.endpoint_configs[config]
    fleet.next_container = container_of(backend, fleet.next_config)
    endpoint.endpoint_status = "Updating"
    return str(endpoint.arn)


def _refuse_kind(backend: Any, endpoint: Any, old: Any, new: Any) -> None:
    """Refuse what an update can't change.

    https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling-update.html and serverless-endpoints.html
    """
    before, after = old.production_variants[0], new.production_variants[0]
    if "ServerlessConfig" in after and "InstanceType" in before:
        raise refuse("Cannot update an instance-based endpoint to a serverless endpoint.")
    changed = before.get("InstanceType") != after.get("InstanceType")
    if changed and is_scaled(backend, endpoint.endpoint_name):
        raise refuse("Cannot change the instance type of a variant that is registered as a scalable target "
                     f'for "{endpoint.arn}": deregister it first.')  # fmt: skip


def _steps(policy: Mapping[str, Any]) -> Iterator[int]:
    """Return the shares of traffic, in percent, before all of it. Raises AWS's refusal."""
    routing = policy.get("TrafficRoutingConfiguration") or {"Type": "ALL_AT_ONCE"}
    if routing["Type"] == "ALL_AT_ONCE":
        return iter(())
    size = routing.get("CanarySize" if routing["Type"] == "CANARY" else "LinearStepSize")
    if not size or not 0 < int(size["Value"]) <= 50:
        raise refuse("The size of a canary or of a linear step must be at most 50 percent of the capacity.")
    step = int(size["Value"])
    return iter((step,) if routing["Type"] == "CANARY" else range(step, 100, step))


def _answer_invocations(runtime: Any) -> None:
    def invoke_endpoint(self: Any) -> Any:
        name = self.path.split("/")[2]
        body = self.body if isinstance(self.body, bytes) else self.body.encode()
        kind = self.headers.get("Content-Type") or "application/json"
        accept = self.headers.get("Accept") or "*/*"
        fleet, refusal = _in_service(self, name)
        if fleet is None:
            return refusal
        container, refusal = _asked(self, fleet)
        if container is None:
            return refusal
        status, answer_type, answer = container.invoke(body, kind, accept)
        if status != 200:
            return _model_error(status, answer)
        exchange = Exchange(_variant(fleet), body, kind, answer, answer_type)
        _keep(self.current_account, name, fleet, exchange, accept)
        return (
            200,
            {"Content-Type": answer_type, "x-Amzn-Invoked-Production-Variant": _variant(fleet)},
            answer,
        )

    def invoke_endpoint_async(self: Any) -> Any:
        name = self.path.split("/")[2]
        fleet, refusal = _in_service(self, name)
        if fleet is None:
            return refusal
        target = fleet.config.async_inference_config["OutputConfig"]["S3OutputPath"].rstrip("/")
        source = self.headers.get("X-Amzn-SageMaker-InputLocation")
        number = os.urandom(8).hex()
        kind = self.headers.get("X-Amzn-SageMaker-Content-Type") or "application/json"
        data = read_object(self.current_account, source) or b""
        status, _, answer = fleet.pick().invoke(data, kind, "*/*")
        place = f"{target}/{number}.out" if status == 200 else f"{target}/{number}-error.out"
        store_object(self.current_account, place, answer)
        headers = {"X-Amzn-SageMaker-OutputLocation": f"{target}/{number}.out",
                   "X-Amzn-SageMaker-FailureLocation": f"{target}/{number}-error.out"}  # fmt: skip
        return _answer(202, headers, json.dumps({"InferenceId": number}))

    runtime.use_raw_body = True  # Else moto reads bodies as text, which NPY and pictures are not.
    runtime.invoke_endpoint = invoke_endpoint
    runtime.invoke_endpoint_async = invoke_endpoint_async


def _asked(response: Any, fleet: Fleet) -> tuple[Container | None, Any]:
    """Return the container that is to answer, or AWS's refusal."""
    from moto.sagemaker.models import sagemaker_backends

    name = response.headers.get("X-Amzn-SageMaker-Inference-Component")
    if name is None and "ModelName" in fleet.config.production_variants[0]:
        return fleet.pick(), None
    if name is None:
        message = "Inference Component Name header is required for endpoints to which you plan to deploy " \
                  "inference components."  # fmt: skip
    else:
        backend = sagemaker_backends[response.current_account][response.region]
        if (found := component_of(backend, name)) is not None:
            return found.container, None
        message = f"Inference Component {name} has no capacity to process this request."
    headers = {"x-amzn-ErrorType": "ValidationError"}
    return None, _answer(400, headers, json.dumps({"Message": message}))


def _keep(account: str, endpoint: str, fleet: Fleet, exchange: Exchange, accept: str) -> None:
    """Send a request to the shadow as well, and capture what was said."""
    number, exchanges = next(fleet.answered), [exchange]
    shadow = fleet.container.shadow
    if shadow is not None and is_sampled(number, fleet.container.shadow_percent):
        status, kind, answer = shadow.invoke(exchange.body, exchange.content_type, accept)
        variant = fleet.config.shadow_production_variants[0]["VariantName"]
        if status == 200:
            exchanges.append(exchange._replace(variant=variant, answer=answer, answer_type=kind))
    config = fleet.config.data_capture_config
    if config and is_sampled(number, config["InitialSamplingPercentage"]):
        for each in exchanges:
            capture(account, endpoint, config, each)


def _in_service(response: Any, name: str) -> tuple[Fleet | None, Any]:
    from moto.sagemaker.models import sagemaker_backends

    endpoint = sagemaker_backends[response.current_account][response.region].endpoints.get(name)
    if endpoint is None or endpoint.endpoint_status in ("Creating", "Failed"):
        message = f"Endpoint {name} of account {response.current_account} not found."
        headers = {"x-amzn-ErrorType": "ValidationError"}
        return None, _answer(400, headers, json.dumps({"Message": message}))
    fleet: Fleet = getattr(endpoint, "fleet")  # noqa: B009 - not moto's own
    return fleet, None


def _variant(fleet: Fleet) -> str:
    return str(fleet.config.production_variants[0]["VariantName"])


def _model_error(status: int, said: bytes) -> Any:
    text = said.decode("utf-8", "replace")
    side = "client" if status < 500 else "server"
    message = f'Received {side} error ({status}) from primary with message "{text}".'
    body = {"Message": message, "OriginalStatusCode": status, "OriginalMessage": text}
    return _answer(424, {"x-amzn-ErrorType": "ModelError"}, json.dumps(body))


def _answer(status: int, headers: dict[str, str], body: str) -> tuple[int, dict[str, Any], str]:
    """Return an answer as moto wants it: it takes the status from the headers."""
    return status, {**headers, "status": status}, body


def _run_transform_jobs(backend: Any) -> None:
    create = backend.create_transform_job

    def create_transform_job(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = kwargs["transform_job_name"]
        if name in self.transform_jobs:
            arn = resource_arn(self, "transform-job", name)
            raise refuse(
                f'Job name must be unique within an AWS account and region, and a job "{arn}" exists.'
            )
        if kwargs["model_name"] not in self._models:
            raise refuse(f'Could not find model "{resource_arn(self, "model", kwargs["model_name"])}".')
        job = create(self, *args, **kwargs)
        job.transform_job_status = "InProgress"
        threading.Thread(target=_transform, args=(self, job), daemon=True).start()
        return job

    backend.create_transform_job = create_transform_job


def _transform(backend: Any, job: Any) -> None:
    """Send each object below the input's prefix through the container; write NAME.out."""
    from moto.s3.models import s3_backends

    container = Container(backend, backend._models[job.model_name])
    try:
        container._started.wait()
        source = urlsplit(job.transform_input["DataSource"]["S3DataSource"]["S3Uri"])
        bucket = s3_backends[backend.account_id]["aws"].get_bucket(source.netloc)
        kind = job.transform_input.get("ContentType") or "application/json"
        target = job.transform_output["S3OutputPath"].rstrip("/")
        for name in [n for n in bucket.keys if n.startswith(source.path.lstrip("/"))]:
            data = read_object(backend.account_id, f"s3://{source.netloc}/{name}") or b""
            status, _, answer = container.invoke(data, kind, job.transform_output.get("Accept") or "*/*")
            if status != 200:
                raise ValueError(answer.decode("utf-8", "replace"))
            store_object(backend.account_id, f"{target}/{name.rpartition('/')[2]}.out", answer)
        job.transform_job_status = "Completed"
    except Exception as error:
        job.failure_reason, job.transform_job_status = f"ClientError: {error}", "Failed"
    finally:
        container.stop()
