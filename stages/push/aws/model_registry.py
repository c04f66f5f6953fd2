"""Register a package, or an image alone, as a version of a model package group, with its figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy_runner.sdk import Finding, StageError, sha256_file

from ...package.smoke import JSON_TYPE
from . import objects
from .client import Aws
from .release import Release

_DIGEST = "deploy-runner-digest"
_MOST_PROPERTIES = 40
"""AWS takes 50: https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModelPackage.html"""


class Registration:
    """The version of `group` that is this release; `reports` are its verify reports by name."""

    def __init__(
        self,
        aws: Aws,
        *,
        group: str,
        approval: str,
        release: Release,
        image: str,
        reports: Mapping[str, Path],
    ) -> None:
        self._ctx = aws.ctx
        self._client = aws.session.client("sagemaker")
        self._transcript = aws.transcript
        self._group = group
        self._approval = approval
        self._release = release
        self._image = image
        self._reports = {name: json.loads(path.read_text("utf-8")) for name, path in reports.items()}

    def register(self) -> str:
        """Make group and version unless they are there; return the version's ARN."""
        self._make_group()
        found = self._version()
        if found is not None:
            return str(found["ModelPackageArn"])
        metrics = self._upload_metrics()
        package = {"ModelDataUrl": self._release.url} if self._release.url else {}
        made = self._client.create_model_package(
            ModelPackageGroupName=self._group,
            ModelPackageDescription=f"made by deploy-runner, stage {self._ctx.stage}",
            InferenceSpecification={
                "Containers": [{"Image": self._image, **package}],
                "SupportedContentTypes": [JSON_TYPE, "text/csv", "application/x-npy"],
                "SupportedResponseMIMETypes": [JSON_TYPE, "text/csv", "application/x-npy"],
            },
            ModelApprovalStatus=self._approval,
            CustomerMetadataProperties=self._properties(),
            ClientToken=hashlib.sha256(f"{self._group} {self._release.digest}".encode()).hexdigest()[:36],
            **({"ModelMetrics": {"ModelQuality": {"Statistics": metrics}}} if metrics else {}),
        )
        self._transcript.add("sagemaker:CreateModelPackage", group=self._group, approval=self._approval)
        return str(made["ModelPackageArn"])

    def _make_group(self) -> None:
        try:
            self._client.describe_model_package_group(ModelPackageGroupName=self._group)
        except self._client.exceptions.ClientError as error:
            if "does not exist" not in str(error):
                raise
            objects.unless(
                lambda: self._client.create_model_package_group(ModelPackageGroupName=self._group),
                "already exist",
            )
            self._transcript.add("sagemaker:CreateModelPackageGroup", name=self._group)

    def _versions(self) -> Iterator[dict[str, Any]]:
        """Yield the group's versions, the newest first."""
        pages = self._client.get_paginator("list_model_packages").paginate(
            ModelPackageGroupName=self._group, SortBy="CreationTime", SortOrder="Descending"
        )
        for row in (row for page in pages for row in page["ModelPackageSummaryList"]):
            yield self._client.describe_model_package(ModelPackageName=row["ModelPackageArn"])

    def _version(self) -> dict[str, Any] | None:
        wanted = self._release.digest
        return next(
            (v for v in self._versions() if v.get("CustomerMetadataProperties", {}).get(_DIGEST) == wanted),
            None,
        )

    def _properties(self) -> dict[str, str]:
        origin = {"deploy-runner-run": self._ctx.run, "deploy-runner-commit": self._ctx.commit}
        figures = {
            f"{name}.{figure}": str(value)
            for name, report in self._reports.items()
            for figure, value in report.items()
            if isinstance(value, (int, float))
        }
        known = {_DIGEST: self._release.digest} | {k: v for k, v in origin.items() if v}
        return known | dict(sorted(figures.items())[:_MOST_PROPERTIES])

    def _upload_metrics(self) -> dict[str, str] | None:
        """Put the reports into the release's folder; return the metrics source that names them."""
        if not self._reports:
            return None
        path = self._ctx.workdir / "metrics.json"
        path.write_text(json.dumps(self._reports, sort_keys=True), "utf-8")
        digest = sha256_file(path)
        upload = self._release.beside(f"metrics-{digest[:16]}.json", path, digest, JSON_TYPE)
        objects.put_once(upload, self._transcript)
        return {"ContentType": JSON_TYPE, "S3Uri": upload.uri}

    def findings(self) -> list[Finding]:
        """Return whether the package is registered, and its approval as it is."""
        found = self._found()
        wanted = f"{self._group} has {self._release.digest[:12]}"
        if found is None:
            return [Finding("model package", wanted, "not registered")]
        status = str(found["ModelApprovalStatus"])
        return [Finding("model package", wanted, wanted), Finding("approval", status, status)]

    def promote(self, status: str) -> str:
        """Set the approval status; say of what."""
        found = self._found()
        if found is None:
            raise StageError(f"{self._group} has no version with this package", fix="deploy-runner run first")
        arn = str(found["ModelPackageArn"])
        name = "/".join(arn.rsplit("/", 2)[-2:])
        if found["ModelApprovalStatus"] == status:
            return f"{name} is already {status}"
        self._client.update_model_package(ModelPackageArn=arn, ModelApprovalStatus=status)
        return f"{name} is now {status}, it was {found['ModelApprovalStatus']}"

    def _found(self) -> dict[str, Any] | None:
        try:
            return self._version()
        except self._client.exceptions.ClientError as error:
            if "does not exist" not in str(error):
                raise
            return None
