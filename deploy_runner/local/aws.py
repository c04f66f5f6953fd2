"""An AWS on loopback: moto's HTTP server, made to answer as AWS where moto differs.

    python -m deploy_runner.local.aws        prints {"url": …}, serves until stdin ends

Differences that are mended (measured with moto 5.2.5): a name that exists is refused, an endpoint
config needs its models, UpdateEndpoint exists and keeps the old config until it is done, an
endpoint is not in service at once, a config in use can't be deleted, and members that are empty
are left out, as AWS does and its own SDK needs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["extend_moto", "main"]

_LEFT_OUT: tuple[Any, ...] = (None, {}, [], [None])


def extend_moto() -> None:
    """Patch moto's SageMaker in this process; to be called before its server starts."""
    from moto.sagemaker.models import SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse

    if getattr(SageMakerModelBackend, "_deploy_runner", False):
        return
    setattr(SageMakerModelBackend, "_deploy_runner", True)  # noqa: B010 - not moto's own
    _refuse_existing(SageMakerModelBackend)
    _require_models(SageMakerModelBackend)
    _add_updates(SageMakerModelBackend, SageMakerResponse)
    _keep_used_configs(SageMakerModelBackend)
    for name in ("describe_model", "describe_endpoint", "describe_endpoint_config"):
        _strip_empty(SageMakerResponse, name)


def _refuse(message: str) -> Exception:
    from moto.sagemaker.exceptions import ValidationError

    refusal: Exception = ValidationError(message=message)
    return refusal


def _arn(backend: Any, kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{backend.region_name}:{backend.account_id}:{kind}/{name}"


def _refuse_existing(backend: Any) -> None:
    """Moto overwrites in silence; AWS refuses."""
    for method, argument, store, kind in (
        ("create_model", "model_name", "_models", "model"),
        ("create_endpoint_config", "endpoint_config_name", "endpoint_configs", "endpoint-config"),
        ("create_endpoint", "endpoint_name", "endpoints", "endpoint"),
        ("create_model_package_group", "model_package_group_name", "model_package_groups",
         "model-package-group"),
    ):  # fmt: skip
        setattr(backend, method, _checked(getattr(backend, method), argument, store, kind))


def _checked(original: Callable[..., Any], argument: str, store: str, kind: str) -> Callable[..., Any]:
    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = kwargs[argument] if argument in kwargs else args[0]
        if name in getattr(self, store):
            words = kind.replace("-", " ")
            raise _refuse(f'Cannot create already existing {words} "{_arn(self, kind, name)}".')
        return original(self, *args, **kwargs)

    return create


def _require_models(backend: Any) -> None:
    original = backend.create_endpoint_config

    def create_endpoint_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        variants = kwargs.get("production_variants") or []
        for variant in variants:
            name = variant.get("ModelName", "")
            if name not in self._models:
                raise _refuse(f'Could not find model "{_arn(self, "model", name)}".')
        return original(self, *args, **kwargs)

    backend.create_endpoint_config = create_endpoint_config


def _add_updates(backend: Any, response: Any) -> None:
    """Make endpoints pass through Creating and Updating: one description each."""
    create = backend.create_endpoint
    describe = backend.describe_endpoint

    def create_endpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        endpoint = create(self, *args, **kwargs)
        endpoint.endpoint_status = "Creating"
        return endpoint

    def describe_endpoint(self: Any, endpoint_name: str) -> dict[str, Any]:
        if endpoint_name not in self.endpoints:
            raise _refuse(f'Could not find endpoint "{_arn(self, "endpoint", endpoint_name)}".')
        answer: dict[str, Any] = dict(describe(self, endpoint_name))
        _settle(self.endpoints[endpoint_name])
        return answer

    def update_endpoint(self: Any) -> Any:
        from moto.core.responses import ActionResult

        name, config = self._get_param("EndpointName"), self._get_param("EndpointConfigName")
        arn = _update(self.sagemaker_backend, name, config)
        return ActionResult({"EndpointArn": arn})

    backend.create_endpoint = create_endpoint
    backend.describe_endpoint = describe_endpoint
    response.update_endpoint = update_endpoint


def _settle(endpoint: Any) -> None:
    """Finish what a description has shown under way."""
    from moto.core.utils import utcnow

    if endpoint.endpoint_status == "Updating":
        config = endpoint.next_config
        endpoint.endpoint_config_name = config.endpoint_config_name
        endpoint.production_variants = endpoint._process_production_variants(config.production_variants)
        endpoint.last_modified_time = utcnow()
    if endpoint.endpoint_status in ("Creating", "Updating"):
        endpoint.endpoint_status = "InService"


def _update(backend: Any, name: str, config: str) -> str:
    if name not in backend.endpoints:
        raise _refuse(f'Could not find endpoint "{_arn(backend, "endpoint", name)}".')
    if config not in backend.endpoint_configs:
        raise _refuse(f'Could not find endpoint configuration "{_arn(backend, "endpoint-config", config)}".')
    endpoint = backend.endpoints[name]
    if endpoint.endpoint_status != "InService":
        raise _refuse(f'Cannot update in-progress endpoint "{endpoint.arn}".')
    if endpoint.endpoint_config_name == config:
        raise _refuse("Cannot update endpoint with the endpoint configuration it already uses.")
    endpoint.next_config = backend.endpoint_configs[config]
    endpoint.endpoint_status = "Updating"
    return str(endpoint.arn)


def _keep_used_configs(backend: Any) -> None:
    original = backend.delete_endpoint_config

    def delete_endpoint_config(self: Any, endpoint_config_name: str) -> None:
        for endpoint in self.endpoints.values():
            if endpoint.endpoint_config_name == endpoint_config_name:
                arn = _arn(self, "endpoint-config", endpoint_config_name)
                raise _refuse(f'Cannot delete endpoint configuration "{arn}": an endpoint uses it.')
        original(self, endpoint_config_name)

    backend.delete_endpoint_config = delete_endpoint_config


def _strip_empty(response: Any, name: str) -> None:
    original = getattr(response, name)

    def describe(self: Any) -> Any:
        result = original(self)
        result._result = {k: v for k, v in _plain(result._result).items() if v not in _LEFT_OUT}
        return result

    setattr(response, name, describe)


def _plain(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else dict(vars(value))


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; print the address as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy_runner.local.aws", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    args = parser.parse_args(argv)
    from moto.server import ThreadedMotoServer

    extend_moto()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=args.port, verbose=False)
    try:
        with socket.create_server(("127.0.0.1", args.port)):
            pass  # moto's server starts in a thread, where a refusal would be lost.
        server.start()
    except OSError as error:
        print(f"error: port {args.port} can't be used: {os.strerror(error.errno or 0)}", file=sys.stderr)  # noqa: T201
        return 2
    host, port = server.get_host_and_port()
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)  # noqa: T201
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
