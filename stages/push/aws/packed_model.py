"""A package as a SageMaker model, by a name that holds the digest of all that it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy_runner.sdk import ConflictError, Field, StageParams

from . import objects
from .client import Aws

TAG = "deploy-runner"
GONE = "Could not find"


class ModelParams(StageParams):
    """What a model is made of; what is left out comes from the target's `aws:`."""

    bucket: str | None = Field(None, description="S3 bucket")
    prefix: str = Field("models", description="prefix of the object's key")
    role_arn: str | None = Field(None, description="the role that SageMaker assumes")
    image_uri: str | None = Field(None, description="the inference container")
    environment: dict[str, str] = Field(default={}, description="environment variables of the container")


class PackedModel:
    """The model whose package is at `url` (an `s3://` address) and has the SHA-256 `digest`."""

    def __init__(self, aws: Aws, params: ModelParams, *, owner: str, url: str, digest: str) -> None:
        self._aws = aws
        self.url = url
        self.digest = digest
        self._role = aws.setting(params, "role_arn")
        self.image = aws.setting(params, "image_uri")
        self._environment = {
            "SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": url, **params.environment
        }  # fmt: skip
        self.name = named(owner, "model", url, self.image, self._role, self._environment)
        ctx = aws.ctx
        origin = {"digest": digest, "stage": ctx.stage, "run": ctx.run, "commit": ctx.commit}
        self.tags = {f"{TAG}:{name}": value for name, value in origin.items() if value}

    @property
    def aws_tags(self) -> list[dict[str, str]]:
        """Return the tags as AWS takes them."""
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]

    def make(self) -> None:
        """Make the model unless it is there. Raises ConflictError where it serves something else.

        A creation that finds it existing is the echo of our own first try, or another run's.
        """
        from sagemaker.core.resources import Model
        from sagemaker.core.shapes import ContainerDefinition, Tag

        def get() -> Any:
            return Model.get(model_name=self.name, **self._aws.where)

        found = or_none(get)
        if found is None:
            container = ContainerDefinition(
                image=self.image, model_data_url=self.url, environment=self._environment
            )
            tags = [Tag(key=key, value=value) for key, value in self.tags.items()]
            objects.unless(lambda: Model.create(
                model_name=self.name, primary_container=container, execution_role_arn=self._role,
                tags=tags, **self._aws.where), "already exist")  # fmt: skip
            self._aws.transcript.add("sagemaker:CreateModel", name=self.name)
            found = get()
        served = found.primary_container.model_data_url
        if served != self.url:
            raise ConflictError(f"the model {self.name} already exists and serves {served}")


def named(owner: str, *parts: Any) -> str:
    """Return a name that begins with its owner's and ends in the digest of its parts."""
    text = json.dumps(parts, sort_keys=True)
    return f"{owner}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def or_none(get: Callable[[], Any]) -> Any:
    """Return what `get` finds, or None if AWS says that it doesn't exist."""
    from botocore.exceptions import ClientError

    try:
        return get()
    except ClientError as error:
        if GONE not in str(error):
            raise
        return None


def package_upload(aws: Aws, params: ModelParams, package: Path, *, owner: str) -> objects.Upload:
    """Return the upload of a package, by a key that holds its digest."""
    digest = aws.ctx.digests["package"]
    key = f"{params.prefix}/{owner}/{digest}/model.tar.gz"
    bucket, s3 = aws.setting(params, "bucket"), aws.session.client("s3")
    return objects.Upload(s3, bucket, key, package, digest, progress=aws.ctx.progress)


def put_package(aws: Aws, upload: objects.Upload) -> None:
    """Upload the package, once, and read it back where it is new."""
    objects.ensure_bucket(aws, upload)
    if objects.put_once(upload, aws.transcript):
        objects.read_back(upload)
