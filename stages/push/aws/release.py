"""What a push deploys: a package, which goes into a bucket, or an image that has a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_runner.sdk import StageError

from . import names, objects
from .client import Aws
from .packed_model import ModelParams, package_upload, put_package

__all__ = ["NEEDS_DIGEST", "Release", "kept_beside", "release_of"]

NEEDS_DIGEST = "set `image_uri: REPOSITORY@sha256:…`, without a tag: `docker push` prints the digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is deployed; `digest` is the SHA-256 of the `package`, or where there is none of the image.

    `folder` is where in the bucket there is room for what belongs to it.
    """

    aws: Aws
    s3: Any
    bucket: str
    folder: str
    digest: str
    package: objects.Upload | None

    @property
    def url(self) -> str:
        """Return the package's `s3://` address; nothing for an image alone."""
        return self.package.uri if self.package else ""

    def put(self) -> None:
        """Upload the package, once; an image alone needs the bucket for what belongs to it."""
        if self.package:
            put_package(self.aws, self.package)
        else:
            objects.ensure_bucket(self.aws, self.s3, self.bucket)

    def beside(
        self, name: str, path: Path, digest: str, content_type: str = "application/gzip"
    ) -> objects.Upload:
        """Return the upload of a file that belongs to it."""
        key = f"{self.folder}/{name}"
        return objects.Upload(self.s3, self.bucket, key, path, digest, content_type=content_type)


def release_of(aws: Aws, params: ModelParams, package: Path | None, *, owner: str) -> Release:
    """Return the release of a package, or of the image. Raises StageError for an image without a digest."""
    if package is not None:
        upload = package_upload(aws, params, package, owner=owner)
        return Release(
            aws=aws, s3=upload.s3, bucket=upload.bucket, folder=upload.key.rpartition("/")[0],
            digest=upload.digest, package=upload,
        )  # fmt: skip
    digest = names.image_digest(aws.setting(params, "image_uri"))
    if not digest:
        raise StageError("the image that is deployed is not named by its digest", fix=NEEDS_DIGEST)
    return Release(
        aws=aws, s3=aws.session.client("s3"), bucket=aws.setting(params, "bucket"),
        folder=f"{params.prefix}/{owner}/{digest}", digest=digest, package=None,
    )  # fmt: skip


def kept_beside(container: Mapping[str, Any], folder: str) -> str:
    """Return the `s3://` folder of what belongs to what a container serves; nothing where it has none.

    `folder` is the endpoint's, where those of images are.
    """
    if package := container.get("ModelDataUrl"):
        return str(package).rpartition("/")[0]
    digest = names.image_digest(container.get("Image", ""))
    return f"{folder}/{digest}" if digest else ""
