"""Put a blob into a registry once, whatever the network does.

All bytes go with the PUT that names their digest. One that breaks off begins again: the reference registry
refuses the rest of an upload that it has a part of.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

from deploy_runner.sdk import ConflictError, StageError

from .client import Body, Registry, said
from .modelpack import Blob

__all__ = ["has_blob", "put_blob"]

_WRONG_BYTES = 3
"""How often bytes are sent that arrive wrong."""


def has_blob(registry: Registry, blob: Blob) -> bool:
    """Say whether the registry has a blob. Raises ConflictError where it has another size."""
    answer = registry.ask("HEAD", f"blobs/sha256:{blob.digest}")
    if answer.status_code == 404:
        return False
    registry.expect(answer, 200)
    size = answer.headers.get("Content-Length", str(blob.size))
    if size != str(blob.size):
        raise ConflictError(f"{registry.name}@sha256:{blob.digest} has {size} bytes instead of {blob.size}")
    return True


def put_blob(registry: Registry, blob: Blob) -> bool:
    """Upload a blob unless it exists, and read it back; say whether it was uploaded."""
    if has_blob(registry, blob):
        return False
    for tried in itertools.count(1):
        what, after = _sent(registry, blob, tried)
        if not what:
            break
        registry.wait(tried, f"PUT blobs/uploads: {what}", after)
    if registry.read_back(blob.digest) != blob.digest:
        raise StageError(f"{registry.name}@sha256:{blob.digest} has a different digest when read back")
    registry.transcript.add("PutBlob", repository=registry.repository, sha256=blob.digest, bytes=blob.size)
    return True


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _sent(registry: Registry, blob: Blob, tried: int) -> tuple[str, str | None]:
    """Send all bytes once; return what speaks for another try, with the Retry-After that came with it."""
    begun = registry.ask("POST", "blobs/uploads/", b"")
    registry.expect(begun, 202)
    place = urljoin(f"{registry.url}/blobs/uploads/", begun.headers["Location"])
    joint = "&" if "?" in place else "?"
    body: Body = partial(_opened, blob.path) if blob.size else b""
    headers = {"Content-Type": "application/octet-stream"}
    answer, what, after = registry.once("PUT", f"{place}{joint}digest=sha256:{blob.digest}", body, headers)
    if answer is not None and answer.status_code == 201:
        return "", None
    if has_blob(registry, blob):  # The answer was lost.
        return "", None
    if answer is not None and (answer.status_code not in (400, 404) or tried >= _WRONG_BYTES):
        registry.expect(answer, 201)
    return what or said(answer), after
