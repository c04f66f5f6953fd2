"""Put a file into S3 exactly once, whatever the network does."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import ConflictError, StageError

from ._transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 8


def boto_session(target: Mapping[str, Any]) -> Any:
    """Return a boto3 session for a target. Raises StageError where there are no credentials."""
    import boto3

    session = boto3.Session(region_name=target.get("region"))
    if session.region_name is None:
        raise StageError("no AWS region is set", fix="set target.aws.region, or export AWS_REGION")
    if session.get_credentials() is None:
        raise StageError("no AWS credentials are found", fix="export AWS_PROFILE=…, or use OIDC in CI")
    return session


def client(session: Any, service: str) -> Any:
    """Return a client that retries with full jitter."""
    from botocore.config import Config

    retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
    return session.client(service, config=Config(retries=retries))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_once(s3: Any, bucket: str, key: str, path: Path, transcript: Transcript) -> str:
    """Upload a file unless it is there already; return its `s3://` address.

    The write is conditional and carries its SHA-256. A 412 may be the echo of our own first try,
    so the object is compared before it counts as a conflict. Raises ConflictError where the key
    holds something else.
    """
    from botocore.exceptions import ClientError

    digest = file_digest(path)
    checksum = base64.b64encode(bytes.fromhex(digest)).decode()
    if not _is_there(s3, bucket, key, checksum, digest):
        try:
            with path.open("rb") as body:
                s3.put_object(
                    Bucket=bucket, Key=key, Body=body, ChecksumSHA256=checksum,
                    IfNoneMatch="*", Metadata={"sha256": digest}, ContentType="application/gzip",
                )  # fmt: skip
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status not in (409, 412) or not _is_there(s3, bucket, key, checksum, digest):
                raise
        transcript.add("s3:PutObject", bucket=bucket, key=key, sha256=digest, bytes=path.stat().st_size)
    return f"s3://{bucket}/{key}"


def _is_there(s3: Any, bucket: str, key: str, checksum: str, digest: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        head = s3.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    found = head.get("ChecksumSHA256") or ""
    same = found == checksum or (not found and head.get("Metadata", {}).get("sha256") == digest)
    if not same:
        raise ConflictError(f"s3://{bucket}/{key} holds something else", fix="use another prefix")
    return True


def ensure_bucket(s3: Any, bucket: str, region: str, transcript: Transcript, *, create: bool) -> None:
    """Make sure of a bucket. Raises StageError where there is none and it may not be made."""
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 403:
            raise StageError(f"the bucket {bucket} may not be read with these credentials") from error
        if not create:
            raise StageError(f"there is no bucket {bucket}",
                             fix="make it, or set target.aws.create_bucket: true") from error  # fmt: skip
        place = {"LocationConstraint": region}
        s3.create_bucket(
            Bucket=bucket, **({} if region == "us-east-1" else {"CreateBucketConfiguration": place})
        )
        transcript.add("s3:CreateBucket", bucket=bucket)


def read_back(s3: Any, bucket: str, key: str, digest: str) -> None:
    """Download an object and compare its digest. Raises StageError where it differs."""
    body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    found = hashlib.sha256()
    for chunk in body.iter_chunks(_CHUNK_BYTES):
        found.update(chunk)
    if found.hexdigest() != digest:
        raise StageError(
            f"s3://{bucket}/{key} was read back with the digest {found.hexdigest()}, not {digest}"
        )
