"""The samples that an endpoint was tested with, kept in S3: by them a rollback is tested."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from deploy_runner.sdk import ConflictError, StageError

from . import invoking, objects
from .client import Aws, plainly
from .release import Release

_NAME = "smoke.npz"


def store(release: Release, samples: Path) -> None:
    """Keep samples that have passed; others that are there have passed as well."""
    digest = release.aws.ctx.digests["smoke"]
    with suppress(ConflictError):
        objects.put_once(release.beside(_NAME, samples, digest), release.aws.transcript)


def stored(aws: Aws, folder: str) -> Path | None:
    """Bring the samples in a folder (`s3://…`); None where none can be read, which the log explains."""
    if not folder:
        return None
    place = f"{folder}/{_NAME}"
    try:
        with plainly():
            data = invoking.read(aws.session.client("s3"), place)
    except StageError as error:
        aws.ctx.log(f"{place}: {error.message}")
        return None
    if data is None:
        return None
    path = aws.ctx.workdir / _NAME
    path.write_bytes(data)
    return path
