"""The samples that an endpoint was tested with, beside its package in S3: by them a rollback is tested."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from deploy_runner.sdk import ConflictError, StageError

from . import invoking, objects
from .client import Aws, plainly

_NAME = "smoke.npz"


def store(aws: Aws, package: objects.Upload, samples: Path) -> None:
    """Keep samples that have passed beside their package; others that are there have passed as well."""
    digest = aws.ctx.digests["smoke"]
    with suppress(ConflictError):
        objects.put_once(
            objects.Upload(package.s3, package.bucket, _beside(package.key), samples, digest), aws.transcript
        )


def stored(aws: Aws, package: str) -> Path | None:
    """Bring the samples of a package (`s3://…`); None where none can be read, which the log explains."""
    if not package:
        return None
    try:
        with plainly():
            data = invoking.read(aws.session.client("s3"), _beside(package))
    except StageError as error:
        aws.ctx.log(f"{_beside(package)}: {error.message}")
        return None
    if data is None:
        return None
    path = aws.ctx.workdir / _NAME
    path.write_bytes(data)
    return path


def _beside(package: str) -> str:
    return f"{package.rpartition('/')[0]}/{_NAME}"
