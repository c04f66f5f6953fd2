"""The object store of a shared cache: bytes by name, in S3, Google Cloud Storage, Azure or a folder.

The one module that imports obstore, on first use. It knows names and bytes, and says what failed in one
sentence; what they mean, and what is done about a failure, is for `shared`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StoreError, UsageError
from ..types import RemoteSpec

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["PART_BYTES", "Listed", "Remote", "RemoteError", "Report", "Taken"]

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_SCHEMES = ("s3", "gs", "az", "file")
PART_BYTES = 8 << 20
_MOST_PARTS = 9000
"""S3 takes 10,000 parts at most."""
_PARTS_AT_ONCE = 4
_STREAM_BYTES = 2 << 20
_LARGEST_SMALL_BYTES = 64 << 20
"""No record, manifest or lease is larger; what is would be read whole into memory."""
_PART_OF_TIMEOUT = 3.0
"""What a part may take to be sent, in time limits: by default four at once at 1.1 MB/s, as of a slow DSL."""
_STREAM_S = 120.0
"""After this a download begins another request where it was: a client has no request without a limit."""
_RETRIES = 2


Report = Callable[[int], None]
"""Is told of what has been done, by a count: of bytes, objects or records."""


class RemoteError(StoreError):
    """The remote can't be used: it is down or slow, or (exit code 2) wrongly configured.

    `cause` says why, without the address.
    """

    def __init__(self, message: str, *, fix: str = "", cause: str = "", exit_code: int = 1) -> None:
        super().__init__(message, fix=fix)
        self.cause = cause
        self.exit_code = exit_code


class Taken(Exception):
    """A conditional write came too late: the name is taken, or has other content by now."""


class Listed(NamedTuple):
    """One object of a listing: `age_s` is by this machine's clock."""

    name: str
    size: int
    age_s: float


class Remote:
    """The remote at a URL. Every method raises RemoteError where it can't be used."""

    def __init__(self, spec: RemoteSpec, environ: Mapping[str, str]) -> None:
        self.url = spec.url.rstrip("/")
        self._timeout_s = spec.timeout_s
        self._environ = environ
        scheme = spec.url.partition("://")[0]
        if scheme not in _SCHEMES or not spec.url.partition("://")[2].strip("/"):
            known = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder"
            raise UsageError(f"{spec.url!r} is not an address of a shared cache", fix=f"use {known}")

    # Clients ---------------------------------------------------------------------------------

    @cached_property
    def _small(self) -> ObjectStore:
        """The client of requests that are short: each as a whole has the time limit."""
        return self._client(timeout=_seconds(self._timeout_s))

    @cached_property
    def _incoming(self) -> ObjectStore:
        """The client of downloads: what has a limit is the wait for the next bytes."""
        limit = _seconds(max(_STREAM_S, self._timeout_s))
        return self._client(read_timeout=_seconds(self._timeout_s), timeout=limit)

    @cached_property
    def _uploads(self) -> ObjectStore:
        """The client of uploads: each part has a limit, because its answer comes when all of it is sent."""
        return self._client(timeout=_seconds(self._timeout_s * _PART_OF_TIMEOUT))

    def _client(self, **options: str) -> ObjectStore:
        try:
            from obstore.store import LocalStore, from_url
        except ImportError:
            raise UsageError(
                "a shared cache needs the extra `remote`", fix='pip install "deploy-runner[remote]"'
            ) from None
        backoff = {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=1),
            "base": 2,
        }
        retries: Any = {
            "max_retries": _RETRIES, "retry_timeout": timedelta(seconds=self._timeout_s), "backoff": backoff,
        }  # fmt: skip
        with self._errors("be opened"):
            if self.url.startswith("file://"):
                return LocalStore(self.url.removeprefix("file://"))
            client: Any = {"connect_timeout": _seconds(min(5.0, self._timeout_s)), **options}
            if any(self._environ.get(name, "").startswith("http://") for name in _ENDPOINTS):
                client["allow_http"] = True
            return from_url(self.url, client_options=client, retry_config=retries, **self._credentials())

    def _credentials(self) -> dict[str, Any]:
        """Return boto3's credentials where the environment has none: those of a profile or of SSO."""
        known = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                 "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE")  # fmt: skip
        if not self.url.startswith("s3://") or any(name in self._environ for name in known):
            return {}
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider

            return {"credential_provider": Boto3CredentialProvider()}
        except (ImportError, ValueError):  # Without boto3, or with it and nothing configured.
            return {}

    # Small content ---------------------------------------------------------------------------

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small object's content and its etag, or None where there is none."""
        import obstore

        with self._errors("be read"):
            try:
                found = obstore.get(self._small, name)
                if found.meta["size"] > _LARGEST_SMALL_BYTES:
                    return None
                return bytes(found.bytes()), self._version(found.meta)
            except FileNotFoundError as error:
                _refuse_no_bucket(error)
                return None

    @property
    def _compared(self) -> str:
        """What conditional writes compare: the etag, or in Google Cloud Storage an object's generation."""
        return "version" if self.url.startswith("gs://") else "e_tag"

    def _version(self, found: Mapping[str, Any]) -> str:
        return found[self._compared] or ""

    def write(self, name: str, data: bytes, *, new: bool = False, etag: str = "") -> str:
        """Write a small object and return its etag.

        With `new` only where the name is free, with `etag` only where the content is still that one: else
        Taken is raised. Where the remote can't compare etags, what is there is replaced without comparing.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if new else {self._compared: etag} if etag else "overwrite"
        with self._errors("be written", strict=True):
            try:
                return self._version(obstore.put(self._small, name, data, mode=mode, use_multipart=False))
            except (AlreadyExistsError, PreconditionError):
                if mode == "overwrite":
                    raise
                raise Taken from None
            except NotImplementedError:
                return self._version(obstore.put(self._small, name, data, use_multipart=False))
            except FileNotFoundError as error:
                _refuse_no_bucket(error)
                if not etag:
                    raise
                raise Taken from None  # What should have been replaced is gone.

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; one that does not exist is no error."""
        import obstore

        with self._errors("be written"):
            for name in names:
                try:
                    obstore.delete(self._small, name)
                except FileNotFoundError as error:
                    _refuse_no_bucket(error)

    def list(self, folder: str) -> Iterator[Listed]:
        """Yield every object below a folder; a thousand a request."""
        import datetime

        import obstore

        with self._errors("be listed"):
            for page in obstore.list(self._small, folder):
                now = datetime.datetime.now(datetime.UTC)
                for found in page:
                    age_s = (now - found["last_modified"]).total_seconds()
                    yield Listed(found["path"], found["size"], age_s)

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None where there is none."""
        import obstore

        with self._errors("be read"):
            try:
                return int(obstore.head(self._small, name)["size"])
            except FileNotFoundError as error:
                _refuse_no_bucket(error)
                return None

    # Bulk ------------------------------------------------------------------------------------

    def stream(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end` of an object, as they come; memory doesn't grow with it.

        Raises FileNotFoundError where there is none.
        """
        import obstore

        with self._errors("be read"):
            whole: Any = {"range": (start, end)} if start < end else {}
            found = obstore.get(self._incoming, name, options=whole)
            yield from found.stream(min_chunk_size=_STREAM_BYTES)

    def send(self, name: str, parts: Iterable[bytes], size: int) -> None:
        """Write an object of `size` bytes from parts; if these raise, there is none afterwards."""
        import obstore

        with self._errors("be written", strict=True):
            if size <= PART_BYTES:
                obstore.put(self._uploads, name, b"".join(parts), use_multipart=False)
            else:
                most, part = _PARTS_AT_ONCE, part_bytes(size)
                obstore.put(self._uploads, name, iter(parts), chunk_size=part, max_concurrency=most)

    @contextmanager
    def _errors(self, verb: str, *, strict: bool = False) -> Iterator[None]:
        """Raise what obstore raises as RemoteError; FileNotFoundError stays, unless `strict`."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not strict and "NoSuchBucket" not in str(error):
                raise
            message, fix, exit_code = _sentence(error)
            said = f"{self.url} can't {verb}: {message}"
            raise RemoteError(said, fix=fix, cause=message, exit_code=exit_code) from error


def part_bytes(size: int) -> int:
    """Return how large the parts of an object are sent."""
    return max(PART_BYTES, -(-size // _MOST_PARTS))


def _seconds(seconds: float) -> str:
    return f"{int(seconds * 1000)}ms"


def _refuse_no_bucket(error: FileNotFoundError) -> None:
    """Raise again what says not that an object is missing, but what it would be in."""
    if "NoSuchBucket" in str(error):
        raise error


_MISTAKES: tuple[tuple[str, str, str], ...] = (
    ("NoSuchBucket", "the bucket doesn't exist", "create it, or correct cache.remote"),
    ("ContainerNotFound", "the container doesn't exist", "create it, or correct cache.remote"),
    ("Unable to canonicalize", "the folder doesn't exist", "create or mount it, or correct cache.remote"),
    ("Not a directory (os error", "a part of its path is a file", "correct cache.remote"),
    ("Read-only file system", "it is read-only", "mount it to be written, or set cache.push to false"),
    ("Permission denied (os error", "permission is denied", "check the mode of the folder"),
    ("No space left on device", "no space is left there", "free some space"),
    ("Account must be specified", "no account is named", "set AZURE_STORAGE_ACCOUNT_NAME"),
    ("InvalidAccessKeyId", "the access key is unknown there", "check the credentials"),
    ("SignatureDoesNotMatch", "the secret key is wrong", "check the credentials"),
    ("ExpiredToken", "the credentials have expired", "renew them"),
    ("PermanentRedirect", "the bucket is in another region", "set AWS_REGION"),
    ("Error getting credentials", "there are no credentials", "set AWS_PROFILE or AWS_ACCESS_KEY_ID"),
    ("169.254.169.254", "there are no credentials", "set AWS_PROFILE or AWS_ACCESS_KEY_ID"),
    ("AccessDenied", "permission is denied", "check the policy of the bucket"),
    ("403 Forbidden", "permission is denied", "check the policy of the bucket"),
    ("401 Unauthorized", "the credentials are refused", "check the credentials"),
)  # fmt: skip
"""What an error says, the message, and what to do: a matter of configuration."""

_OUTAGES: tuple[tuple[str, str, str], ...] = (
    ("operation timed out", "it didn't answer in time", "raise cache.timeout"),
    ("kind: Timeout", "it didn't answer in time", "raise cache.timeout"),
    ("Connect", "it can't be reached", ""),
)  # fmt: skip


def _sentence(error: BaseException) -> tuple[str, str, int]:
    """Return what an error of obstore says, in a few words, what to do, and the exit code."""
    said = str(error)
    for exit_code, sentences in ((2, _MISTAKES), (1, _OUTAGES)):
        for mark, message, fix in sentences:
            if mark in said:
                return message, fix, exit_code
    if status := re.search(r"status code: (\d{3}[ A-Za-z]*)", said):
        return f"it answers {status[1].strip()}", "", 1
    first = said.partition("\n")[0].partition("Debug source:")[0].strip()
    return first[:200] or type(error).__name__, "", 1
