"""An AWS on loopback: moto's HTTP server, made to answer as AWS where moto differs.

    python -m deploy_runner.local.aws        prints {"url": …}, serves until stdin ends

`--image NAME=FOLDER` is the image that was built from a context of `package.container`.

Differences that are corrected (measured with moto 5.2.5): a name that exists is refused, an endpoint
config needs its models, a config in use can't be deleted, a version of a model package is made once
for a token and keeps its properties, an object whose bytes don't have the SHA-256 that was sent with
them is refused, a HEAD says of how many parts a checksum is, policies can't be simulated, and members
that are empty are left out, as AWS does and its own SDK needs. What endpoints do is in `aws_endpoints`,
which settings they have in `aws_settings`, how they scale in `aws_autoscaling`, and what a request may
say in `aws_requests`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .aws_autoscaling import check_targets
from .aws_components import extend_components
from .aws_endpoints import extend_endpoints
from .aws_fleets import IMAGES, refuse, resource_arn
from .aws_requests import check_requests
from .aws_settings import hold_settings

__all__ = ["extend_moto", "main"]

_BUCKET = re.compile(r"(?!xn--|sthree-|amzn-s3-demo-|\d+(\.\d+){3}$|.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, read on 2026-11-30"""
_LEFT_OUT: tuple[Any, ...] = (None, {}, [], [None])
_WITH_EMPTY = (
    "describe_model", "describe_endpoint", "describe_endpoint_config", "describe_model_package"
)  # fmt: skip


def extend_moto() -> None:
    """Patch moto's S3 and SageMaker in this process; to be called before its server starts."""
    from moto.applicationautoscaling.models import ApplicationAutoscalingBackend
    from moto.iam.responses import IamResponse
    from moto.s3.models import S3Backend
    from moto.s3.responses import S3Response
    from moto.sagemaker.models import SageMakerModelBackend
    from moto.sagemaker.responses import SageMakerResponse
    from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

    if getattr(SageMakerModelBackend, "_deploy_runner", False):
        return
    setattr(SageMakerModelBackend, "_deploy_runner", True)  # noqa: B010 - not moto's own
    _refuse_existing(SageMakerModelBackend)
    _require_models(SageMakerModelBackend)
    extend_endpoints(SageMakerModelBackend, SageMakerResponse, SageMakerRuntimeResponse)
    _keep_used_configs(SageMakerModelBackend)
    _keep_versions(SageMakerModelBackend)
    _check_bodies(S3Response)
    _check_buckets(S3Backend)
    setattr(IamResponse, "simulate_principal_policy", _may_not_simulate)  # noqa: B010 - not moto's own
    hold_settings(SageMakerModelBackend, SageMakerResponse, refuse)
    extend_components(SageMakerModelBackend, SageMakerResponse)
    check_targets(ApplicationAutoscalingBackend)
    check_requests(SageMakerResponse, "sagemaker", refuse)
    for name in _WITH_EMPTY:
        _strip_empty(SageMakerResponse, name)


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
            raise refuse(f'Cannot create already existing {words} "{resource_arn(self, kind, name)}".')
        return original(self, *args, **kwargs)

    return create


def _may_not_simulate(response: Any) -> Any:
    """Moto lacks it, which ends ModelBuilder of AWS's SDK; a role without the right to simulate doesn't."""
    from moto.iam.exceptions import IAMException

    class AccessDenied(IAMException):
        code = "AccessDenied"

    raise AccessDenied("the local AWS has no policies to simulate")


def _require_models(backend: Any) -> None:
    original = backend.create_endpoint_config

    def create_endpoint_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        variants = kwargs.get("production_variants") or []
        for variant in variants:
            name = variant.get("ModelName")
            if name is not None and name not in self._models:
                raise refuse(f'Could not find model "{resource_arn(self, "model", name)}".')
        return original(self, *args, **kwargs)

    backend.create_endpoint_config = create_endpoint_config


def _keep_used_configs(backend: Any) -> None:
    original = backend.delete_endpoint_config

    def delete_endpoint_config(self: Any, endpoint_config_name: str) -> None:
        for endpoint in self.endpoints.values():
            if endpoint.endpoint_config_name == endpoint_config_name:
                arn = resource_arn(self, "endpoint-config", endpoint_config_name)
                raise refuse(f'Cannot delete endpoint configuration "{arn}": an endpoint uses it.')
        original(self, endpoint_config_name)

    backend.delete_endpoint_config = delete_endpoint_config


def _keep_versions(backend: Any) -> None:
    """Moto makes a version twice for one ClientToken, and an update loses what it doesn't name."""
    create, update = backend.create_model_package, backend.update_model_package

    def create_model_package(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = kwargs.get("client_token")
        for made in self.model_packages.values():
            if token and made.client_token == token:
                return made.arn
        return create(self, *args, **kwargs)

    def update_model_package(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = kwargs["model_package_arn"]
        version = self.model_packages.get(self.model_package_name_mapping.get(name, name))
        if kwargs.get("customer_metadata_properties") is None and version is not None:
            kwargs["customer_metadata_properties"] = version.customer_metadata_properties
        return update(self, *args, **kwargs)

    backend.create_model_package = create_model_package
    backend.update_model_package = update_model_package


def _check_buckets(backend: Any) -> None:
    """Moto takes any name from 3 to 63 characters."""
    original = backend.create_bucket

    def create_bucket(self: Any, bucket_name: str, *args: Any, **kwargs: Any) -> Any:
        from moto.s3.exceptions import InvalidBucketName

        if not _BUCKET.fullmatch(bucket_name):
            raise InvalidBucketName
        return original(self, bucket_name, *args, **kwargs)

    backend.create_bucket = create_bucket


def _check_bodies(response: Any) -> None:
    """Moto takes whatever bytes arrive; S3 compares them with their length and their checksum."""
    for name in ("put_object", "upload_part"):
        setattr(response, name, _whole(getattr(response, name)))
    response.head_object = _counting_parts(response.head_object)


def _whole(original: Callable[..., Any]) -> Callable[..., Any]:
    def take(self: Any) -> Any:
        from moto.s3.exceptions import S3ClientError

        body = self.body if isinstance(self.body, bytes) else self.body.encode()
        wanted = self.headers.get("x-amz-checksum-sha256")
        if wanted and base64.b64encode(hashlib.sha256(body).digest()).decode() != wanted:
            raise S3ClientError(
                "BadDigest", "The SHA256 you specified did not match the calculated checksum."
            )
        return original(self)

    return take


def _counting_parts(original: Callable[..., Any]) -> Callable[..., Any]:
    """Moto's HEAD leaves out how many parts a composite checksum is made of; its GET doesn't."""

    def head_object(self: Any, *args: Any, **kwargs: Any) -> Any:
        status, headers, body = original(self, *args, **kwargs)
        _, _, parts = str(headers.get("ETag", "")).strip('"').partition("-")
        checksum = headers.get("x-amz-checksum-sha256")
        if parts and checksum:
            headers["x-amz-checksum-sha256"] = f"{checksum}-{parts}"
        return status, headers, body

    return head_object


def _strip_empty(response: Any, name: str) -> None:
    original = getattr(response, name)

    def describe(self: Any) -> Any:
        result = original(self)
        result._result = {k: v for k, v in _plain(result._result).items() if v not in _LEFT_OUT}
        return result

    setattr(response, name, describe)


def _plain(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else dict(vars(value))


def _image(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (Path(folder) / "Dockerfile").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with a Dockerfile in the folder")
    return name, Path(folder).absolute()


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; print the address as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m deploy_runner.local.aws", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--image", type=_image, action="append", default=[], metavar="NAME=FOLDER",
        help="an image, and the context of package.container that it was built from; `*` is any other",
    )  # fmt: skip
    args = parser.parse_args(argv)
    IMAGES.update(args.image)
    from moto.server import ThreadedMotoServer

    extend_moto()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=args.port, verbose=False)
    try:
        with socket.create_server(("127.0.0.1", args.port)):
            pass  # moto's server starts in a thread, where a refusal would be lost.
        server.start()
    except OSError as error:
        said = f"port {args.port} can't be used: {os.strerror(error.errno or 0)}"
        print(f"error: {said} (--port 0 takes a free port)", file=sys.stderr)  # noqa: T201
        return 2
    host, port = server.get_host_and_port()
    print(json.dumps({"url": f"http://{host}:{port}"}), flush=True)  # noqa: T201
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
