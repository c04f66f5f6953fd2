"""The endpoint `e` of the local AWS: what it has, how it has drifted, and its rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3

from deploy_runner.sdk import Context, sha256_file
from tests.aws import TARGET, package
from tests.bundles import stage


def client(service: str) -> Any:
    """Return a client of the AWS that the environment names."""
    return boto3.client(service, region_name="us-east-1")


def served() -> dict[str, Any]:
    """Return the endpoint's config."""
    name = client("sagemaker").describe_endpoint(EndpointName="e")["EndpointConfigName"]
    found: dict[str, Any] = client("sagemaker").describe_endpoint_config(EndpointConfigName=name)
    return found


def drifted(folder: Path, factor: float, **params: Any) -> dict[str, tuple[str, str]]:
    """Return what `status` finds out of sync, by name: as wanted, and as found."""
    kind, run = stage("push.sagemaker"), folder / f"status{len(list(folder.iterdir()))}"
    run.mkdir()
    path = package(run, factor)
    ctx = Context(stage="push", workdir=run, target=TARGET, digests={"package": sha256_file(path)})
    given = kind.Params.model_validate({"endpoint": "e", **params})
    found = kind().status(ctx, given, kind.Inputs.model_validate({"package": path}))
    return {row.what: (row.wanted, row.found) for row in found if not row.in_sync}


def rolled_back(folder: Path, to: str = "", **params: Any) -> str:
    """Roll the endpoint back; return what was said."""
    kind = stage("push.sagemaker")
    ctx = Context(stage="push", workdir=folder, target=TARGET)
    return str(kind().rollback(ctx, kind.Params.model_validate({"endpoint": "e", **params}), to))
