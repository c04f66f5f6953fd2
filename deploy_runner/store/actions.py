"""The action records: action key → output digests and figures, authenticated.

A content hash proves that bytes are what they were; it cannot prove that a key led to them. So
each record carries an HMAC-SHA256 with the store's secret over its kind, its name and its content, and
one that is forged, foreign, damaged, truncated or in another's place is a miss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ..types import Artifact, Json
from .files import read_or_none, refuse_exhaustion, remove_whatever, write_atomic
from .layout import give_way, subfolders
from .seal import Seal

__all__ = ["ActionRecord", "LastKeys", "Records", "Whereabouts", "record_body", "record_of"]

Whereabouts = Literal["", "there", "lost"]
"""Whether the objects of a record need not be here: the shared cache has them, or was found not to."""

_DAMAGED = "its action record is damaged"
_FOREIGN = (
    "its action record was sealed with another key (was DEPLOY_RUNNER_CACHE_KEY set, changed or removed"
    " since?), is of another action, or its seal is damaged"
)
_OF_ANOTHER_VERSION = "its action record was written by another version of deploy-runner"


class ActionRecord(NamedTuple):
    """What one action made. `preimage` is what its key is the hash of."""

    key: str
    uses: str
    outputs: Mapping[str, Artifact]
    figures: Mapping[str, Json]
    preimage: Mapping[str, Json]
    seconds: float = 0.0
    remote: Whereabouts = ""


class Records:
    """The records of one store, a file each, and for reading those of a protected one."""

    def __init__(self, home: Path, *, protected: Path | None = None, writable: bool = True) -> None:
        self._home = os.fspath(home)
        self._protected = Records(protected, writable=False) if protected else None
        self.seal = Seal(home, writable=writable, beside_protected=protected is not None)
        self._refused: dict[str, str] = {}

    def _path(self, key: str) -> str:
        return f"{self._home}/actions/{key[:2]}/{key[2:]}.json"

    def get(self, key: str) -> ActionRecord | None:
        """Return the record of a key, or None where there is none that is sound."""
        found = self.own(key)
        return self._protected.get(key) if found is None and self._protected else found

    def own(self, key: str) -> ActionRecord | None:
        """Return the record that this store itself has of a key, as `get` does."""
        path = self._path(key)
        data = read_or_none(path)
        if data is None:
            return None
        body = self.seal.opened(data, "action", key, path)
        record = record_of(key, body) if body is not None else None
        if body is None:
            self._refused[key] = _FOREIGN if self.seal.is_whole(data) else _DAMAGED
        elif record is None:
            self._refused[key] = _OF_ANOTHER_VERSION
        return record

    def problem(self, key: str) -> str:
        """Say why the record of a key was refused, or nothing."""
        there = self._protected.problem(key) if self._protected else ""
        return self._refused.get(key, there)

    def put(self, record: ActionRecord) -> None:
        """Write a record. Raises StoreError where the store can't be written.

        One whose objects a shared cache has isn't synced: after a loss of power it is asked for again.
        """
        sealed = self.seal.sealed(record_body(record), "action", record.key)
        path = Path(self._path(record.key))
        give_way(os.fspath(path.parent))
        write_atomic(path, sealed, tmp=Path(self._home) / "tmp", durable=not record.remote)

    def remove(self, key: str) -> None:
        """Forget a record."""
        try:
            remove_whatever(self._path(key))
        except OSError:
            return

    def keys(self) -> Iterator[str]:
        """Yield the key of every record file, sound or not."""
        base = f"{self._home}/actions"
        for shard in subfolders(base):
            for name in listdir(f"{base}/{shard}"):
                if name.endswith(".json") and not name.startswith("."):
                    yield shard + name.removesuffix(".json")


def record_body(record: ActionRecord) -> bytes:
    """Return a record as JSON."""
    value = {
        "key": record.key,
        "uses": record.uses,
        "outputs": {n: a.row() for n, a in record.outputs.items()},
        "figures": dict(record.figures),
        "preimage": dict(record.preimage),
        "seconds": record.seconds,
    }
    if record.remote:
        value["remote"] = record.remote
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def record_of(key: str, body: bytes) -> ActionRecord | None:
    """Return the record that a body holds, or None where it is of another version of deploy-runner."""
    try:
        value = json.loads(body.decode())  # Given bytes, `loads` would guess their encoding first.
        outputs = {n: Artifact(*a) for n, a in value["outputs"].items()}
        rest = (value["figures"], value["preimage"], value["seconds"], value.get("remote", ""))
        return ActionRecord(key, value["uses"], outputs, *rest)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class LastKeys:
    """Per pipeline and stage the key of the last run, so that `explain` has what to compare."""

    def __init__(self, home: Path, pipeline: str) -> None:
        from hashlib import sha256

        self._name = sha256(pipeline.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._tmp = home / "tmp"
        self._path = home / "last" / f"{self._name}.json"
        self._seal = Seal(home)
        self._keys: dict[str, str] | None = None

    def read(self) -> dict[str, str]:
        """Return stage id → key; empty where nothing is known."""
        if self._keys is None:
            data = read_or_none(self._path)
            body = self._seal.opened(data, "last", self._name) if data else None
            value = json.loads(body) if body else {}
            self._keys = value if isinstance(value, dict) else {}
        return self._keys

    def update(self, keys: Mapping[str, str]) -> None:
        """Remember these keys too; nothing is written where nothing changed."""
        known = self.read()
        merged = {**known, **keys}
        if merged != known:
            body = json.dumps(merged).encode()
            write_atomic(self._path, self._seal.sealed(body, "last", self._name), tmp=self._tmp)
            self._keys = merged


def listdir(path: str) -> list[str]:
    """Return the names in a folder, none where there is no such. Raises StoreError as `read_or_none` does."""
    try:
        return os.listdir(path)
    except OSError as error:
        refuse_exhaustion(error, path)
        return []
