"""The action records: action key → output digests and figures, authenticated.

A content hash proves that bytes are what they were; it cannot prove that a key led to them. So
each record carries an HMAC-SHA256 with the store's secret, and one that is forged, foreign,
damaged or truncated is a miss.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ..types import Artifact, Json
from .files import read_or_none, write_atomic, write_once

__all__ = ["ActionRecord", "LastKeys", "Records"]

_SECRET_BYTES = 32
_UNPROTECTED = b"deploy-runner: not of the protected namespace"
_MAC = b',"mac":"%s"}'


class ActionRecord(NamedTuple):
    """What one action made. `preimage` is what its key is the hash of."""

    key: str
    uses: str
    outputs: Mapping[str, Artifact]
    figures: Mapping[str, Json]
    preimage: Mapping[str, Json]
    seconds: float = 0.0


class Records:
    """The records of one store, a file each, and for reading those of a protected one."""

    def __init__(self, home: Path, *, protected: Path | None = None, writable: bool = True) -> None:
        self._home = os.fspath(home)
        self._writable = writable
        self._protected = Records(protected, writable=False) if protected else None
        self._secret: bytes | None = None
        self._refused: dict[str, str] = {}

    def _path(self, key: str) -> str:
        return f"{self._home}/actions/{key[:2]}/{key[2:]}.json"

    def get(self, key: str) -> ActionRecord | None:
        """Return the record of a key, or None where there is none that is sound."""
        found = self._own(key)
        return self._protected.get(key) if found is None and self._protected else found

    def _own(self, key: str) -> ActionRecord | None:
        data = read_or_none(self._path(key))
        if data is None:
            return None
        body = self.unsealed(data)
        if body is None:
            self._refused[key] = "its record is damaged, or was not written by this store"
            return None
        value = json.loads(body)
        if value["key"] != key:
            self._refused[key] = "its record belongs to another key"
            return None
        return ActionRecord(
            key,
            value["uses"],
            {n: Artifact(*a) for n, a in value["outputs"].items()},
            value["figures"],
            value["preimage"],
            value["seconds"],
        )

    def problem(self, key: str) -> str:
        """Say why the record of a key was refused, or nothing."""
        there = self._protected.problem(key) if self._protected else ""
        return self._refused.get(key, there)

    def put(self, record: ActionRecord) -> None:
        """Write a record. Raises StoreError where the store can't be written."""
        outputs = {n: [a.digest, a.kind, a.size] for n, a in record.outputs.items()}
        value = {
            "key": record.key,
            "uses": record.uses,
            "outputs": outputs,
            "figures": dict(record.figures),
            "preimage": dict(record.preimage),
            "seconds": record.seconds,
        }
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        write_atomic(Path(self._path(record.key)), self.sealed(body), tmp=Path(self._home) / "tmp")

    def remove(self, key: str) -> None:
        """Forget a record."""
        try:
            os.unlink(self._path(key))
        except OSError:
            return

    def keys(self) -> Iterator[str]:
        """Yield the key of every record file, sound or not."""
        base = f"{self._home}/actions"
        for shard in listdir(base):
            for name in listdir(f"{base}/{shard}"):
                if name.endswith(".json") and not name.startswith("."):
                    yield shard + name.removesuffix(".json")

    def sealed(self, body: bytes) -> bytes:
        """Return a state file's content with its HMAC on a line before it."""
        return hmac.digest(self.secret(), body, "sha256").hex().encode() + b"\n" + body

    def unsealed(self, data: bytes) -> bytes | None:
        """Return what was sealed, or None where one bit of it isn't as this store wrote it."""
        mac, _, body = data.partition(b"\n")
        expected = hmac.digest(self.secret(), body, "sha256").hex().encode()
        return body if hmac.compare_digest(mac, expected) else None

    def signed(self, body: bytes) -> bytes:
        """Return a JSON object's text with its HMAC as the last member, so that it stays JSON."""
        return body[:-1] + _MAC % hmac.digest(self.secret(), body, "sha256").hex().encode()

    def signed_body(self, data: bytes) -> bytes | None:
        """Return what `signed` was given, or None where one bit of it isn't as this store wrote it."""
        body = data[: -len(_MAC % bytes(64))] + b"}"
        return body if hmac.compare_digest(self.signed(body), data) else None

    def secret(self) -> bytes:
        """Return the store's secret: `DEPLOY_RUNNER_CACHE_KEY`, or a file made on first use.

        A store beside a protected one has another, so that the protected one refuses its records.
        """
        if self._secret is None:
            shared = os.environ.get("DEPLOY_RUNNER_CACHE_KEY", "").encode()
            if shared and self._protected:
                shared = hmac.digest(shared, _UNPROTECTED, "sha256")
            self._secret = shared or self._own_secret()
        return self._secret

    def _own_secret(self) -> bytes:
        path, tmp = Path(self._home) / "secret", Path(self._home) / "tmp"
        known = read_or_none(path)
        if known is not None and len(known) == _SECRET_BYTES:
            return known
        if not self._writable:
            return os.urandom(_SECRET_BYTES)  # No record is of this store's making.
        write = write_once if known is None else write_atomic
        write(path, os.urandom(_SECRET_BYTES), mode=0o600, tmp=tmp)
        return read_or_none(path) or b""


class LastKeys:
    """Per pipeline and stage the key of the last run, so that `explain` has what to compare."""

    def __init__(self, home: Path, pipeline: str) -> None:
        from hashlib import sha256

        name = sha256(pipeline.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._tmp = home / "tmp"
        self._path = home / "last" / f"{name}.json"
        self._keys: dict[str, str] | None = None

    def read(self) -> dict[str, str]:
        """Return stage id → key; empty where nothing is known."""
        if self._keys is None:
            try:
                value = json.loads(read_or_none(self._path) or b"{}")
            except ValueError:
                value = {}
            self._keys = value if isinstance(value, dict) else {}
        return self._keys

    def update(self, keys: Mapping[str, str]) -> None:
        """Remember these keys too; nothing is written where nothing changed."""
        known = self.read()
        merged = {**known, **keys}
        if merged != known:
            write_atomic(self._path, json.dumps(merged).encode(), tmp=self._tmp)
            self._keys = merged


def listdir(path: str) -> list[str]:
    """Return the names in a folder, none where there is no such folder."""
    try:
        return os.listdir(path)
    except OSError:
        return []
