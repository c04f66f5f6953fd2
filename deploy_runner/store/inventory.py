"""What a shared cache has, by listing it, and which objects its records name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from ..types import Artifact
from .actions import ActionRecord
from .folders import members_in, sha256_bytes
from .link import OBJECTS, RECORDS, object_name
from .remote import Listed, Remote

__all__ = ["Inventory", "each", "named_by", "record_keys", "take_inventory"]

_REQUESTS_AT_ONCE = 16
_RECORD = re.compile(RECORDS + r"/([0-9a-f]{2})/([0-9a-f]{62})\.json")
_OBJECT = re.compile(OBJECTS + r"/([0-9a-f]{2})/([0-9a-f]{62})")
_DIGEST = re.compile(r"[0-9a-f]{64}")

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Inventory(NamedTuple):
    """The records by key and the objects by digest."""

    records: dict[str, Listed]
    objects: dict[str, Listed]

    @property
    def bytes(self) -> int:
        """How large all objects are."""
        return sum(found.size for found in self.objects.values())


def take_inventory(remote: Remote) -> Inventory:
    """List the records, then the objects: those of every listed record are listed. Raises RemoteError."""
    records = _listed(remote, RECORDS, _RECORD)
    return Inventory(records, _listed(remote, OBJECTS, _OBJECT))


def record_keys(remote: Remote) -> set[str]:
    """List the keys of all records. Raises RemoteError."""
    return set(_listed(remote, RECORDS, _RECORD))


def _listed(remote: Remote, folder: str, pattern: re.Pattern[str]) -> dict[str, Listed]:
    matches = ((pattern.fullmatch(found.name), found) for found in remote.list(folder))
    return {match[1] + match[2]: found for match, found in matches if match}


def each(
    do: Callable[[_Item], _Result], items: Iterable[_Item], at_once: int = _REQUESTS_AT_ONCE
) -> list[_Result]:
    """Return what `do` returns for each item, several at once; after the first that raises none is begun."""
    pool = ThreadPoolExecutor(at_once, "shared-cache")
    try:
        results = list(pool.map(do, items))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return results


def named_by(remote: Remote, records: Iterable[ActionRecord]) -> dict[str, set[str]]:
    """Return key → the digests of all objects that a record names; for a folder those in its manifest, too.

    What is not a digest, and a manifest that is missing or damaged, names nothing. Raises RemoteError.
    """
    outputs = {r.key: [a for a in r.outputs.values() if _is_digest(a.digest)] for r in records}
    folders = {a.digest for artifacts in outputs.values() for a in artifacts if a.kind == "folder"}
    members = dict(each(lambda digest: (digest, set(_members(remote, digest))), folders))
    return {key: set(_closure(artifacts, members)) for key, artifacts in outputs.items()}


def _closure(artifacts: Iterable[Artifact], members: dict[str, set[str]]) -> Iterator[str]:
    for artifact in artifacts:
        yield artifact.digest
        yield from members.get(artifact.digest, ())


def _members(remote: Remote, digest: str) -> Iterator[str]:
    """Yield the digests of a folder's files."""
    found = remote.read(object_name(digest))
    if found is None or sha256_bytes(found[0]) != digest:
        return
    try:
        digests = [member.digest for member in members_in(found[0])]
    except ValueError:
        return  # Somebody's record calls another object a folder.
    yield from filter(_is_digest, digests)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None
