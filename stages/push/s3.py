"""`push.s3`: an artifact in a bucket under its digest, and a pointer that names the newest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    ConflictError,
    Field,
    File,
    Finding,
    Folder,
    StageError,
    StageInputs,
    StageParams,
    sha256_file,
)

from ..package.smoke import JSON_TYPE
from .aws import names, objects
from .aws.client import Aws, AwsPush

_MOVES = 3
"""How often the pointer is read and moved again where somebody else has moved it meanwhile."""
_MANIFEST = "manifest.json"
_POINTER = "latest.json"


class PushS3(AwsPush):
    """Upload a file or a folder to `s3://bucket/prefix/DIGEST/`, once, and move the pointer to it last.

    Each object is written on condition that none exists under its name. Then the manifest follows,
    which lists the objects with their digests, and last `prefix/latest.json`, on condition that it
    hasn't changed since it was read.
    """

    uses = "push.s3"
    packages = ("boto3", "moto")
    settings = ("bucket",)

    class Params(StageParams):
        """Where to; the bucket that is left out comes from the target's `aws:`."""

        prefix: names.Prefix = Field(description="prefix of every key, e.g. models/digits")
        bucket: names.Bucket | None = Field(None, description="S3 bucket")
        name: str | None = Field(
            None, pattern=r"^[^/]+$", description="the name of a single file (default: artifact.…)"
        )

    class Inputs(StageInputs):
        """The artifact."""

        artifact: File | Folder = Field(description="what to upload")

    def converge(self, aws: Aws, params: Params, inputs: Inputs, outputs: Any) -> dict[str, Any]:
        """Objects first, then the manifest, the pointer last; then read back."""
        release = _Release(aws, params, inputs.artifact)
        release.upload()
        release.point()
        aws.ctx.figure("digest", release.digest)
        aws.ctx.figure("uri", release.uri)
        return {"uri": release.uri, "files": release.files}

    def findings(self, aws: Aws, params: Params, inputs: Inputs) -> list[Finding]:
        """Compare the objects and the pointer with what the pipeline says."""
        release = _Release(aws, params, inputs.artifact)
        there = objects.is_there(release.manifest)
        found = release.pointer.read()[0].get("digest", "missing")
        return [
            Finding("objects", release.uri, release.uri if there else "missing"),
            Finding("pointer", release.digest, str(found)),
        ]

    def restore(self, aws: Aws, params: Params, to: str) -> str:
        """Point to what was pointed to before, or to the digest that begins with `to`."""
        return _pointer(aws, params).roll_back(to)


def _pointer(aws: Aws, params: PushS3.Params) -> _Pointer:
    return _Pointer(aws.session.client("s3"), aws.setting(params, "bucket"), params.prefix)


class _Release:
    """An artifact as objects: `files` are its SHA-256 by path, `digest` is that of the manifest."""

    def __init__(self, aws: Aws, params: PushS3.Params, artifact: Path) -> None:
        self._aws, self.pointer = aws, _pointer(aws, params)
        self._paths = {params.name or artifact.name: artifact} if artifact.is_file() else _members(artifact)
        known = aws.ctx.digests.get("artifact") if artifact.is_file() else None
        self.files = {name: known or sha256_file(path) for name, path in self._paths.items()}
        listed = {
            name: {"sha256": digest, "bytes": self._paths[name].stat().st_size}
            for name, digest in self.files.items()
        }
        text = aws.ctx.workdir / _MANIFEST
        text.write_text(json.dumps({"files": listed}, indent=2, sort_keys=True) + "\n", "utf-8")
        self.digest = sha256_file(text)
        self.uri = f"s3://{self.pointer.bucket}/{params.prefix}/{self.digest}"
        self.manifest = self._object(_MANIFEST, text, self.digest, JSON_TYPE)

    def _object(self, name: str, path: Path, digest: str, kind: str) -> objects.Upload:
        to, key = self.pointer, f"{self.pointer.prefix}/{self.digest}/{name}"
        return objects.Upload(
            to.s3, to.bucket, key, path, digest, content_type=kind, progress=self._aws.ctx.progress
        )  # fmt: skip

    def upload(self) -> None:
        objects.ensure_bucket(self._aws, self.manifest.s3, self.manifest.bucket)
        for name, path in self._paths.items():
            upload = self._object(name, path, self.files[name], "application/octet-stream")
            objects.put_once(upload, self._aws.transcript)
        objects.put_once(self.manifest, self._aws.transcript)

    def point(self) -> None:
        if self.pointer.move(self.digest):
            uri = f"s3://{self.pointer.bucket}/{self.pointer.key}"
            self._aws.transcript.add("s3:PutObject", pointer=uri, digest=self.digest)


def _members(folder: Path) -> dict[str, Path]:
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    if _MANIFEST in found:
        raise StageError(f"the folder contains a {_MANIFEST}, which the push would overwrite")
    return found


@dataclass(slots=True)
class _Pointer:
    """`prefix/latest.json`: the digest that is current, and the one before it."""

    s3: Any
    bucket: str
    prefix: str

    @property
    def key(self) -> str:
        return f"{self.prefix}/{_POINTER}"

    def read(self) -> tuple[dict[str, Any], str]:
        """Return what it holds and its ETag; nothing where there is none."""

        def get() -> tuple[bytes, str]:
            given = self.s3.get_object(Bucket=self.bucket, Key=self.key)
            return given["Body"].read(), str(given["ETag"])

        found = objects.unless_missing(lambda: objects.again(get))
        if found is None:
            return {}, ""
        body, etag = found
        try:
            return dict(json.loads(body)), etag
        except (ValueError, TypeError):
            raise ConflictError(
                f"s3://{self.bucket}/{self.key} is not a pointer written by push.s3"
            ) from None

    def move(self, digest: str) -> bool:
        """Point to a digest; say whether that changed anything."""
        for _ in range(_MOVES):
            now, etag = self.read()
            if now.get("digest") == digest:
                return False
            if self._write({"digest": digest, "previous": now.get("digest", "")}, etag):
                self._read_back(digest)
                return True
        raise ConflictError(
            f"s3://{self.bucket}/{self.key} is repeatedly changed by another client", fix="run again"
        )

    def _read_back(self, digest: str) -> None:
        """Raise StageError where the pointer doesn't say what was written, nor what came after it."""
        found = self.read()[0]
        if digest not in (found.get("digest"), found.get("previous")):
            raise StageError(f"s3://{self.bucket}/{self.key} differs when read back", fix="run again")

    def _write(self, value: dict[str, str], etag: str) -> bool:
        """Write it where it is as it was read. A refusal may be the echo of our own first try."""
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        body = json.dumps(value, sort_keys=True).encode()
        try:
            self.s3.put_object(
                Bucket=self.bucket, Key=self.key, Body=body, ContentType=JSON_TYPE, **condition
            )
        except self.s3.exceptions.ClientError as error:
            if objects.http_status(error) not in (404, 409, 412):
                raise
            return self.read()[0] == value
        return True

    def roll_back(self, to: str) -> str:
        now, _ = self.read()
        digest = self._matching(to, str(now.get("digest"))) if to else str(now.get("previous", ""))
        if not digest:
            raise StageError(f"s3://{self.bucket}/{self.key} has no previous release",
                             fix="specify a digest: --to DIGEST")  # fmt: skip
        self.move(digest)
        return f"{self.key} points to {digest[:12]} instead of {str(now.get('digest'))[:12]}"

    def _matching(self, to: str, now: str) -> str:
        """Return the release whose digest begins with `to`: one that has its manifest."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}/"
        )
        keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
        known = [key.split("/")[-2] for key in keys if key.endswith(f"/{_MANIFEST}")]
        found = [digest for digest in known if digest.startswith(to) and digest != now]
        if len(found) != 1:
            some = ", ".join(digest[:12] for digest in known) or "none"
            what = "several releases begin" if found else "no other release begins"
            raise StageError(f"{what} with {to}", fix=f"existing releases: {some}")
        return str(found[0])
