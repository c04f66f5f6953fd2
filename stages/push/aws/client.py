"""Reach AWS by boto3, with our retry policy, and turn what its clients raise into one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar

from deploy_runner.sdk import ConflictError, Context, StageError, StageParams, first_line

from ..backoff import Backoff
from ..converging import Push, Service
from ..transcript import Transcript
from . import images
from .target import check, region_of, settings_of

_NO_CREDENTIALS = "no AWS credentials were found"
_CREDENTIALS_FIX = "export AWS_PROFILE=…, or use OIDC in CI"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aws(Service):
    """AWS, as a boto3 session of the target's region."""

    session: Any

    @property
    def where(self) -> dict[str, Any]:
        """Return the arguments of sagemaker-core's calls."""
        return {"session": self.session, "region": self.session.region_name}

    def setting(self, params: StageParams, name: str) -> str:
        """Return a parameter, by default from the target. Raises StageError if neither is set."""
        value = getattr(params, name) or target(self.ctx).get(name)
        if not value:
            raise StageError(f"{name} is not set", fix=f"set `with.{name}` or `target.aws.{name}`")
        return str(value)


class AwsPush(Push):
    """The base of pushes to AWS."""

    packages: ClassVar[tuple[str, ...]] = ("boto3", "sagemaker-core", "moto")
    extra = "sagemaker"
    services = ("aws",)
    settings: ClassVar[tuple[str, ...]] = ("bucket", "role_arn", "image_uri")
    """The parameters that come from the target's `aws:` where they are left out."""

    def check_target(
        self, params: Mapping[str, Any], target: Mapping[str, Any], environ: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Return what is missing of the region and the settings, and what AWS would refuse of them."""
        return check(self.settings, params, target, environ)

    @contextmanager
    def service(self, ctx: Context, params: Any, backoff: Backoff) -> Iterator[Aws]:
        """Yield AWS."""
        with plainly():
            session = _session(ctx)
            backoff.follow(session)
            yield Aws(ctx=ctx, backoff=backoff, transcript=Transcript(), session=session)

    def advice(self, params: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
        """Say whether the image that is chosen still gets patches."""
        uri = params.get("image_uri") or settings_of(target).get("image_uri")
        return images.advice(str(uri), date.today()) if uri else []

    def credentials(self, ctx: Context, params: Any) -> str:
        """Return where boto3 found credentials, and for which region."""
        with plainly():
            session = _session(ctx)
            return f"found for AWS ({session.get_credentials().method}), region {session.region_name}"


def target(ctx: Context) -> dict[str, Any]:
    """Return the target's `aws:`."""
    return settings_of(ctx.target)


def _session(ctx: Context) -> Any:
    import boto3

    session = boto3.Session(region_name=region_of(ctx.target, os.environ) or None)
    if session.region_name is None:
        raise StageError("no AWS region is set", fix="set target.aws.region, or export AWS_REGION=…")
    if session.get_credentials() is None:
        raise StageError(_NO_CREDENTIALS, fix=_CREDENTIALS_FIX)
    return session


@contextmanager
def plainly() -> Iterator[None]:
    """Turn whatever AWS's clients raise into a StageError of one sentence."""
    try:
        yield
    except (ConflictError, StageError):
        raise
    except Exception as error:
        raise _plain_error(error) from error


def _plain_error(error: Exception) -> StageError:
    from botocore.exceptions import (
        ClientError,
        EndpointConnectionError,
        NoCredentialsError,
        ParamValidationError,
    )

    if isinstance(error, NoCredentialsError):
        return StageError(_NO_CREDENTIALS, fix=_CREDENTIALS_FIX)
    if isinstance(error, EndpointConnectionError):
        return StageError(f"AWS can't be reached: {error}", fix="run again: what was uploaded is kept")
    if isinstance(error, ClientError):
        said = error.response.get("Error", {})
        what = f"{error.operation_name}: {said.get('Code', '')}: {said.get('Message', '')}"
        return StageError(f"AWS rejected {what}")
    if isinstance(error, ParamValidationError):
        reasons = str(error.kwargs["report"]).splitlines()
        return StageError(f"AWS doesn't take these parameters: {'; '.join(reasons)}")
    return StageError(f"AWS can't be used: {type(error).__name__}: {first_line(error)}",
                      fix="`deploy-runner doctor` checks the credentials and the region")  # fmt: skip
