"""`push.sagemaker`: a package as a SageMaker endpoint, by names that hold its digest."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from deploy_runner.sdk import (
    ConflictError,
    Context,
    Field,
    File,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from . import _s3
from ._transcript import Transcript

_WAIT_S = 3600
_POLL_S = 1


class PushSagemaker(Stage):
    """Upload a package to S3, and converge model, endpoint config and endpoint to it.

    The names of the model and of the config hold the digest of what they are made of: what is
    there already is compared, not made twice. The endpoint is moved last, and waited for.
    """

    uses = "push.sagemaker"
    packages = ("boto3", "sagemaker-core", "moto")
    extra = "sagemaker"
    network = True
    services = ("aws",)
    converges = True

    class Params(StageParams):
        """What to deploy; what is left out comes from the target's `aws:`."""

        endpoint: str = Field(pattern=r"^[A-Za-z0-9](-?[A-Za-z0-9])*$", max_length=40, description="its name")
        bucket: str | None = Field(None, description="S3 bucket")
        prefix: str = Field("models", description="begins the object's key")
        role_arn: str | None = Field(None, description="the role that SageMaker assumes")
        image_uri: str | None = Field(None, description="the inference container")
        instance_type: str = Field("ml.m5.large", description="the kind of instance")
        instance_count: int = Field(1, ge=1, description="how many instances")
        environment: dict[str, str] = Field(default={}, description="variables of the container")

    class Inputs(StageInputs):
        """The package."""

        package: File = Field(description="model.tar.gz of package.sagemaker")

    class Outputs(StageOutputs):
        """The transcript."""

        transcript: File = Output("transcript.json", "every object, name and call")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Objects first, then what names them, the endpoint last; then read all back."""
        target: dict[str, Any] = dict(ctx.target.get("aws") or {})  # type: ignore[call-overload]
        chosen = _chosen(params, target)
        session = _s3.boto_session(target)
        transcript = Transcript()
        digest = _s3.file_digest(inputs.package)
        key = f"{params.prefix}/{params.endpoint}/{digest}/model.tar.gz"
        s3 = _s3.client(session, "s3")
        try:
            create = bool(target.get("create_bucket"))
            _s3.ensure_bucket(s3, chosen["bucket"], session.region_name, transcript, create=create)
            url = _s3.put_once(s3, chosen["bucket"], key, inputs.package, transcript)
            _s3.read_back(s3, chosen["bucket"], key, digest)
            names = _Deployment(ctx, session, params, chosen, url, digest, transcript).converge()
        except (ConflictError, StageError):
            raise
        except Exception as error:
            raise _plain_error(error) from error
        ctx.converged = not transcript.changed
        ctx.figure("calls", transcript.calls)
        ctx.figure("package_sha256", digest)
        for name, value in names.items():
            ctx.figure(name, value)
        transcript.write(outputs.transcript, package=url, sha256=digest, **names)


def _chosen(params: PushSagemaker.Params, target: dict[str, Any]) -> dict[str, str]:
    """Return bucket, role and image, from the parameters or else the target."""
    chosen = {}
    for name in ("bucket", "role_arn", "image_uri"):
        value = getattr(params, name) or target.get(name)
        if not value:
            raise StageError(f"{name} is not set", fix=f"set with.{name}, or target.aws.{name}")
        chosen[name] = str(value)
    return chosen


def _plain_error(error: Exception) -> StageError:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    if isinstance(error, NoCredentialsError):
        return StageError("no AWS credentials are found", fix="export AWS_PROFILE=…, or use OIDC in CI")
    if isinstance(error, EndpointConnectionError):
        return StageError(f"AWS can't be reached: {error}")
    if isinstance(error, ClientError):
        said = error.response.get("Error", {})
        what = f"{error.operation_name}: {said.get('Code', '')}: {said.get('Message', '')}"
        return StageError(f"AWS refused {what}")
    return StageError(f"the push failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


class _Deployment:
    """Model, endpoint config and endpoint of one package."""

    def __init__(
        self,
        ctx: Context,
        session: Any,
        params: PushSagemaker.Params,
        chosen: dict[str, str],
        url: str,
        digest: str,
        transcript: Transcript,
    ) -> None:
        self._ctx = ctx
        self._where = {"session": session, "region": session.region_name}
        self._params = params
        self._chosen = chosen
        self._url = url
        self._transcript = transcript
        self._tags = [("deploy-runner:digest", digest), ("deploy-runner:stage", ctx.stage)]
        self._environment = {
            "SAGEMAKER_PROGRAM": "inference.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": url,
            **params.environment,
        }

    def converge(self) -> dict[str, str]:
        """Make what is missing, move the endpoint, wait, read back; return the names."""
        model = self._model()
        config = self._config(model)
        self._endpoint(config)
        self._read_back(model, config)
        return {"model": model, "endpoint_config": config, "endpoint": self._params.endpoint}

    def _named(self, *parts: Any) -> str:
        text = json.dumps(parts, sort_keys=True)
        return f"{self._params.endpoint}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def _make(self, kind: Any, call: str, name: str, **arguments: Any) -> None:
        """Create a resource; one of our name that is there already is fine, its name is its digest."""
        from botocore.exceptions import ClientError
        from sagemaker.core.shapes import Tag

        tags = [Tag(key=key, value=value) for key, value in self._tags]
        try:
            kind.create(**arguments, tags=tags, **self._where)
        except ClientError as error:
            if "already existing" not in str(error):
                raise
            return
        self._transcript.add(call, name=name)

    def _model(self) -> str:
        from sagemaker.core.resources import Model
        from sagemaker.core.shapes import ContainerDefinition

        image, role = self._chosen["image_uri"], self._chosen["role_arn"]
        name = self._named("model", self._url, image, role, self._environment)
        container = ContainerDefinition(image=image, model_data_url=self._url, environment=self._environment)
        self._make(Model, "sagemaker:CreateModel", name, model_name=name,
                   primary_container=container, execution_role_arn=role)  # fmt: skip
        found = Model.get(model_name=name, **self._where)
        if found.primary_container.model_data_url != self._url:
            raise ConflictError(
                f"the model {name} is there, and serves {found.primary_container.model_data_url}"
            )
        return name

    def _config(self, model: str) -> str:
        from sagemaker.core.resources import EndpointConfig
        from sagemaker.core.shapes import ProductionVariant

        size = (self._params.instance_type, self._params.instance_count)
        name = self._named("config", model, *size)
        variant = ProductionVariant(
            variant_name="main", model_name=model, instance_type=size[0],
            initial_instance_count=size[1], initial_variant_weight=1.0,
        )  # fmt: skip
        self._make(EndpointConfig, "sagemaker:CreateEndpointConfig", name,
                   endpoint_config_name=name, production_variants=[variant])  # fmt: skip
        found = EndpointConfig.get(endpoint_config_name=name, **self._where)
        if [v.model_name for v in found.production_variants] != [model]:
            raise ConflictError(f"the endpoint config {name} is there, and names another model")
        return name

    def _endpoint(self, config: str) -> None:
        from botocore.exceptions import ClientError
        from sagemaker.core.resources import Endpoint

        name = self._params.endpoint
        try:
            endpoint = Endpoint.get(endpoint_name=name, **self._where)
        except ClientError as error:
            if "Could not find" not in str(error):
                raise
            self._make(Endpoint, "sagemaker:CreateEndpoint", name,
                       endpoint_name=name, endpoint_config_name=config)  # fmt: skip
            endpoint = Endpoint.get(endpoint_name=name, **self._where)
        if endpoint.endpoint_status in ("Creating", "Updating"):
            endpoint.wait_for_status("InService", poll=_POLL_S, timeout=_WAIT_S)
            endpoint.refresh()
        if endpoint.endpoint_config_name != config:
            self._ctx.log(f"{name}: {endpoint.endpoint_config_name} → {config}")
            # The SDK sends the resource's own config name: it has no argument for it.
            endpoint.endpoint_config_name = config
            endpoint.update()
            self._transcript.add("sagemaker:UpdateEndpoint", name=name, config=config)
            endpoint.wait_for_status("InService", poll=_POLL_S, timeout=_WAIT_S)

    def _read_back(self, model: str, config: str) -> None:
        from sagemaker.core.resources import Endpoint, EndpointConfig, Model

        endpoint = Endpoint.get(endpoint_name=self._params.endpoint, **self._where)
        if (endpoint.endpoint_status, endpoint.endpoint_config_name) != ("InService", config):
            raise StageError(f"the endpoint {self._params.endpoint} is {endpoint.endpoint_status} with "
                             f"{endpoint.endpoint_config_name}, not in service with {config}")  # fmt: skip
        named = EndpointConfig.get(endpoint_config_name=config, **self._where).production_variants
        data = Model.get(model_name=named[0].model_name, **self._where).primary_container.model_data_url
        if named[0].model_name != model or data != self._url:
            raise StageError(f"the endpoint {self._params.endpoint} was read back with {data}")
