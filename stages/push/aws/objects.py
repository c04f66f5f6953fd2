"""Put a file into S3 exactly once, whatever the network does.

What is larger than a part goes as a multipart upload: each part is read once, hashed and sent with
its SHA-256, and S3 puts the parts together only where no object of that name is there. A run that
was killed is continued: the parts that have arrived are not sent again.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deploy_runner.sdk import ConflictError, StageError

from ..backoff import Backoff
from ..transcript import Transcript
from .client import Aws, target

if TYPE_CHECKING:
    from collections.abc import Mapping

_T = TypeVar("_T")
_CHUNK_BYTES = 1 << 20
_PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
"""S3's own limit: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
_THREADS = 3


@dataclass(slots=True)
class Upload:
    """A file on its way to `s3://bucket/key`; `digest` is its SHA-256, `size` in bytes."""

    s3: Any
    bucket: str
    key: str
    path: Path
    digest: str
    content_type: str = "application/gzip"
    progress: Callable[[float, str], None] = lambda fraction, message: None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = self.path.stat().st_size

    @property
    def uri(self) -> str:
        """Return the object's `s3://` address."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def place(self) -> dict[str, str]:
        """Return what every call about the object begins with."""
        return {"Bucket": self.bucket, "Key": self.key}

    @property
    def described(self) -> dict[str, Any]:
        """Return what is stored beside the bytes."""
        return {"Metadata": {"sha256": self.digest}, "ContentType": self.content_type,
                "ChecksumAlgorithm": "SHA256"}  # fmt: skip

    @property
    def part_bytes(self) -> int:
        """Return the size of a part: the same for the same size of file, whoever uploads it."""
        least = -(-self.size // _MOST_PARTS)
        return max(_PART_BYTES, -(-least // _CHUNK_BYTES) * _CHUNK_BYTES)

    def parts(self) -> Iterator[bytes]:
        """Read the file, a part at a time."""
        with self.path.open("rb") as file:
            while data := file.read(self.part_bytes):
                yield data


def put_once(upload: Upload, transcript: Transcript) -> bool:
    """Upload a file unless it exists, and read it back; say whether it was uploaded.

    Raises ConflictError if the key has different content. An answer alone proves nothing: what stands
    between may have given it.
    """
    if is_there(upload):
        _abort_all(upload)
        return False
    whole = upload.size <= upload.part_bytes
    _exactly_once(upload, _put_whole if whole else _put_parts)
    _abort_all(upload)
    transcript.add("s3:PutObject", bucket=upload.bucket, key=upload.key,
                   sha256=upload.digest, bytes=upload.size)  # fmt: skip
    _read_back(upload)
    return True


def is_there(upload: Upload) -> bool:
    """Say whether the object is there with our bytes. Raises ConflictError where it has others."""
    head = _head(upload)
    if head is None:
        return False
    found = head.get("ChecksumSHA256") or ""
    same = head["ContentLength"] == upload.size and head.get("Metadata", {}).get("sha256") == upload.digest
    if same and found:
        same = found == (_composite(upload) if "-" in found else _base64(bytes.fromhex(upload.digest)))
    if not same:
        raise ConflictError(f"{upload.uri} has different content", fix="use another prefix")
    return True


def _head(upload: Upload) -> Mapping[str, Any] | None:
    return unless_missing(lambda: upload.s3.head_object(**upload.place, ChecksumMode="ENABLED"))


def unless_missing(get: Callable[[], _T]) -> _T | None:
    """Return what `get` finds in S3, or None where nothing is there.

    By the status alone: the code is in a body, which may break off.
    """
    from botocore.exceptions import ClientError

    try:
        return get()
    except ClientError as error:
        if http_status(error) == 404:
            return None
        raise


def _composite(upload: Upload) -> str:
    """Return S3's SHA-256 of a multipart object: that of the parts' digests, and their number.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
    """
    digests = [hashlib.sha256(data).digest() for data in upload.parts()]
    return f"{_base64(hashlib.sha256(b''.join(digests)).digest())}-{len(digests)}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def http_status(error: Any) -> int:
    """Return the HTTP status of a ClientError."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _exactly_once(upload: Upload, put: Callable[[Upload], None]) -> None:
    """Put the object on condition that none is there.

    A 412 may be the echo of our own first try, a 404 that of an upload which is complete: the object
    is compared before either counts as a failure. A 409 says that another writer was at it: then
    the one that is there counts, or a second try.
    """
    from botocore.exceptions import ClientError

    try:
        put(upload)
    except ClientError as error:
        if http_status(error) not in (404, 409, 412):
            raise
        if not is_there(upload):
            if http_status(error) != 409:
                raise
            put(upload)


def _put_whole(upload: Upload) -> None:
    with upload.path.open("rb") as body:
        upload.s3.put_object(
            **upload.place, **upload.described, Body=body, IfNoneMatch="*",
            ChecksumSHA256=_base64(bytes.fromhex(upload.digest)),
        )  # fmt: skip


def _put_parts(upload: Upload) -> None:
    """Send the parts that have not arrived, a few at a time, and put them together."""
    upload_id, arrived = _begin_or_resume(upload)
    whole = hashlib.sha256()
    sent: list[Future[dict[str, Any]]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, data in enumerate(upload.parts(), start=1):
            whole.update(data)
            if number > _THREADS:
                sent[number - 1 - _THREADS].result()
            sent.append(pool.submit(_send_part, upload, upload_id, number, data, arrived.get(number)))
            done = min(number * upload.part_bytes, upload.size)
            upload.progress(done / upload.size, f"{done >> 20} of {upload.size >> 20} MiB")
        parts = [future.result() for future in sent]
    if whole.hexdigest() != upload.digest:
        upload.s3.abort_multipart_upload(**upload.place, UploadId=upload_id)
        raise StageError(f"{upload.path.name} changed while it was uploaded")
    upload.s3.complete_multipart_upload(
        **upload.place, UploadId=upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
    )


def _begin_or_resume(upload: Upload) -> tuple[str, dict[int, Mapping[str, Any]]]:
    """Return an upload's id and the parts that have arrived in it, by number."""
    for upload_id in _unfinished(upload):
        pages = upload.s3.get_paginator("list_parts").paginate(**upload.place, UploadId=upload_id)
        return upload_id, {part["PartNumber"]: part for page in pages for part in page.get("Parts", [])}
    made = upload.s3.create_multipart_upload(**upload.place, **upload.described)
    return str(made["UploadId"]), {}


def _unfinished(upload: Upload) -> list[str]:
    pages = upload.s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=upload.bucket, Prefix=upload.key
    )
    found = [row for page in pages for row in page.get("Uploads", []) if row["Key"] == upload.key]
    return [str(row["UploadId"]) for row in found]


def _send_part(
    upload: Upload, upload_id: str, number: int, data: bytes, arrived: Mapping[str, Any] | None
) -> dict[str, Any]:
    checksum = _base64(hashlib.sha256(data).digest())
    if arrived is not None and _arrived_whole(arrived, data, checksum):
        etag = arrived["ETag"]
    else:
        etag = upload.s3.upload_part(**upload.place, UploadId=upload_id, PartNumber=number, Body=data,
                                     ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum)["ETag"]  # fmt: skip
    return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}


def _arrived_whole(part: Mapping[str, Any], data: bytes, checksum: str) -> bool:
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    return bool(part["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())


def _abort_all(upload: Upload) -> None:
    """Forget what killed runs have begun for an object that is there: it would be paid for."""
    from botocore.exceptions import ClientError

    if upload.size <= upload.part_bytes:
        return
    for upload_id in _unfinished(upload):
        try:
            upload.s3.abort_multipart_upload(**upload.place, UploadId=upload_id)
        except ClientError as error:
            if http_status(error) != 404:
                raise


def ensure_bucket(aws: Aws, s3: Any, bucket: str) -> None:
    """Make sure of a bucket. Raises StageError where there is none and it may not be made."""
    from botocore.exceptions import ClientError

    region = aws.session.region_name
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if http_status(error) == 403:
            said = f"these credentials don't allow reading the bucket {bucket}"
            raise StageError(said, fix="allow them s3:ListBucket on it, or correct its name") from error
        if not target(aws.ctx).get("create_bucket"):
            raise StageError(f"the bucket {bucket} does not exist",
                             fix="create it, or set target.aws.create_bucket: true") from error  # fmt: skip
        place = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        arguments = {} if region == "us-east-1" else place
        unless(lambda: s3.create_bucket(Bucket=bucket, **arguments), "BucketAlreadyOwnedByYou")
        aws.transcript.add("s3:CreateBucket", bucket=bucket)


def again(call: Callable[[], _T]) -> _T:
    """Make a call that reads its answer as a stream; repeat it if the answer is cut off.

    botocore tries a request again, but not the reading of a body.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    backoff = Backoff()
    for tried in itertools.count(1):
        try:
            return call()
        except (HTTPClientError, IncompleteReadError) as error:
            if not backoff.wait(tried, type(error).__name__):
                raise
    raise AssertionError


def _read_back(upload: Upload) -> None:
    """Download the object and compare its digest. Raises StageError where it differs or is missing."""

    def digest() -> str:
        found = hashlib.sha256()
        for chunk in upload.s3.get_object(**upload.place)["Body"].iter_chunks(_CHUNK_BYTES):
            found.update(chunk)
        return found.hexdigest()

    found = unless_missing(lambda: again(digest))
    if found != upload.digest:
        what = "has a different digest" if found else "is missing"
        raise StageError(f"{upload.uri} {what} when read back", fix="run again")


def unless(call: Callable[[], Any], *harmless: str) -> bool:
    """Make a call whose refusal with one of these words may mean that it had its effect before.

    Return whether it was refused so.
    """
    from botocore.exceptions import ClientError

    try:
        call()
    except ClientError as error:
        if not any(words in str(error) for words in harmless):
            raise
        return True
    return False
