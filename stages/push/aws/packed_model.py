"""A package, or an image alone, as a SageMaker model, whose name holds the digest of all it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from deploy_runner.sdk import ConflictError, Field, StageParams

from . import drift, images, names, objects
from .client import Aws
from .limits import RANGES

TAG = "deploy-runner"
GONE = "Could not find"
_OWNER = 63 - 17
"""How long an owner's name may be in one that AWS takes: beside it go a hyphen and 16 digits."""

_VARIABLES = 100 - 2
"""AWS takes 100: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ContainerDefinition.html"""

_ID = r"^[-0-9a-zA-Z]{1,32}$"


class Vpc(StageParams):
    """The private network that containers reach."""

    security_groups: list[Annotated[str, Field(pattern=_ID)]] = Field(
        min_length=1, max_length=RANGES["security_groups"].most, description="their ids, `sg-…`"
    )
    subnets: list[Annotated[str, Field(pattern=_ID)]] = Field(
        min_length=1, max_length=RANGES["subnets"].most, description="their ids, `subnet-…`"
    )

    def arguments(self) -> dict[str, list[str]]:
        """Return the model's VpcConfig; the order of the ids says nothing."""
        return {"SecurityGroupIds": sorted(self.security_groups), "Subnets": sorted(self.subnets)}


class ModelParams(StageParams):
    """What a model is made of; what is left out comes from the target's `aws:`."""

    bucket: names.Bucket | None = Field(None, description="S3 bucket")
    prefix: names.Prefix = Field("models", description="prefix of the object's key")
    role_arn: names.Role | None = Field(None, description="the role that SageMaker assumes")
    image_uri: names.Image | None = Field(None, description="the inference container")
    environment: dict[names.Variable, names.Value] = Field(
        default={}, max_length=_VARIABLES, description="environment variables of the container"
    )
    vpc: Vpc | None = Field(None, description="connect the containers to a private network")
    network_isolation: bool = Field(False, description="give the containers no access to any network")

    def network(self) -> dict[str, Any]:
        """Return CreateModel's arguments of this; empty without any."""
        vpc = {"VpcConfig": self.vpc.arguments()} if self.vpc else {}
        return vpc | ({"EnableNetworkIsolation": True} if self.network_isolation else {})


class PackedModel:
    """The model whose package is at `url` (an `s3://` address); nothing there is an image that has its own.

    `digest` is the SHA-256 of the package or of the image, `carries` what its name and its tags say besides.
    """

    def __init__(
        self,
        aws: Aws,
        params: ModelParams,
        *,
        owner: str,
        url: str,
        digest: str,
        carries: Mapping[str, str] | None = None,
    ) -> None:
        self._aws = aws
        self.url = url
        self.digest = digest
        self.role = aws.setting(params, "role_arn")
        self.image = aws.setting(params, "image_uri")
        code = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": url} if url else {}
        self._environment = {**code, **images.environment(self.image), **params.environment}
        self.network = params.network()
        made_of = (url, self.image, self.role, self._environment)
        self.name = named(owner, "model", *made_of, *filter(None, [self.network, carries]))
        ctx = aws.ctx
        origin = {"digest": digest, "stage": ctx.stage, "run": ctx.run, "commit": ctx.commit}
        self.tags = {f"{TAG}:{name}": value for name, value in origin.items() if value}
        self._carries = {f"{TAG}:{name}": value for name, value in (carries or {}).items()}

    @property
    def aws_tags(self) -> list[dict[str, str]]:
        """Return the tags as AWS takes them."""
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]

    def make(self) -> None:
        """Make the model unless it is there. Raises ConflictError where it serves something else.

        A creation that finds it existing is the echo of our own first try, or another run's.
        """
        from sagemaker.core.resources import Model
        from sagemaker.core.shapes import ContainerDefinition, Tag, VpcConfig

        found = or_none(self.describe)
        if found is None:
            package = {"model_data_url": self.url} if self.url else {}
            container = ContainerDefinition(image=self.image, environment=self._environment, **package)
            tags = [Tag(key=key, value=value) for key, value in (self.tags | self._carries).items()]
            network: dict[str, Any] = {}
            if vpc := self.network.get("VpcConfig"):
                ids, subnets = vpc["SecurityGroupIds"], vpc["Subnets"]
                network["vpc_config"] = VpcConfig(security_group_ids=ids, subnets=subnets)
            if self.network.get("EnableNetworkIsolation"):
                network["enable_network_isolation"] = True
            objects.unless(lambda: Model.create(
                model_name=self.name, primary_container=container, execution_role_arn=self.role,
                tags=tags, **network, **self._aws.where), "already exist")  # fmt: skip
            self._aws.transcript.add(
                "sagemaker:CreateModel", name=self.name, **({} if self.url else {"image": self.image})
            )
            found = self.describe()
        served = found["PrimaryContainer"].get("ModelDataUrl") or found["PrimaryContainer"]["Image"]
        if served != (self.url or self.image):
            raise ConflictError(f"the model {self.name} already exists and serves {served}")
        drift.require_same(f"the model {self.name}", self.network, found)

    def describe(self) -> dict[str, Any]:
        """Return AWS's description of the model."""
        found: dict[str, Any] = self._aws.session.client("sagemaker").describe_model(ModelName=self.name)
        return found


def named(owner: str, *parts: Any) -> str:
    """Return a name that begins with its owner's and ends in the digest of its parts."""
    text = json.dumps(parts, sort_keys=True)
    return f"{name_part(owner)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def name_part(owner: str) -> str:
    """Return an owner's name, or where it is too long its beginning and its digest."""
    if len(owner) <= _OWNER:
        return owner
    digest = hashlib.sha256(owner.encode()).hexdigest()[:8]
    return f"{owner[: _OWNER - 9].rstrip('-')}-{digest}"


def or_none(get: Callable[[], Any]) -> Any:
    """Return what `get` finds, or None if AWS says that it doesn't exist."""
    from botocore.exceptions import ClientError

    try:
        return get()
    except ClientError as error:
        if GONE not in str(error):
            raise
        return None


def package_upload(
    aws: Aws, params: ModelParams, package: Path, *, owner: str, name: str = "package"
) -> objects.Upload:
    """Return the upload of the input `name`, a package, by a key that holds its digest."""
    digest = aws.ctx.digests[name]
    key = f"{params.prefix}/{owner}/{digest}/model.tar.gz"
    bucket, s3 = aws.setting(params, "bucket"), aws.session.client("s3")
    return objects.Upload(s3, bucket, key, package, digest, progress=aws.ctx.progress)


def put_package(aws: Aws, upload: objects.Upload) -> None:
    """Upload the package, once."""
    objects.ensure_bucket(aws, upload.s3, upload.bucket)
    objects.put_once(upload, aws.transcript)
