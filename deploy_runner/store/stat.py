"""Remember the digest of a file that has not changed: (path, size, times, inode) → SHA-256.

A file whose time stamps are younger than two seconds when it is hashed is not remembered: it
could change again within one tick of the clock. Each row carries a check value with the store's key,
so that a damaged or forged database costs a re-hash and never gives a wrong digest. An old row that is
put back is harmless: it counts for the state of the file that it was made of, and no other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b, file_digest
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from .files import open_regular

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Fingerprint", "StatMemo", "fingerprint", "is_sound", "sha256_file", "state_of"]

Fingerprint = tuple[int, int, int, int, int]
"""(size, mtime_ns, ctime_ns, inode, device)."""

_SETTLED_NS = 2_000_000_000
_SCHEMA = """CREATE TABLE IF NOT EXISTS memo (
    path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER,
    device INTEGER, digest TEXT, checked TEXT
) WITHOUT ROWID"""


def sha256_file(path: str | Path | int) -> str:
    """Return the SHA-256 of a regular file, or of an open one from its position on, streamed.

    Raises OSError, for a pipe's path too.
    """
    if isinstance(path, int):
        with open(path, "rb", closefd=False) as file:
            return file_digest(file, "sha256").hexdigest()
    with open(path, "rb", opener=open_regular) as file:
        return file_digest(file, "sha256").hexdigest()


def is_sound(path: str, digest: str) -> bool:
    """Say whether there is a file of this digest, which is no link."""
    try:
        return not os.path.islink(path) and sha256_file(path) == digest
    except OSError:
        return False


def fingerprint(path: str) -> Fingerprint:
    """Return what identifies a file's state without reading it. Raises OSError."""
    return state_of(os.stat(path))


def state_of(s: os.stat_result) -> Fingerprint:
    """Return the fingerprint that a stat is of."""
    return (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)


class StatMemo:
    """The memo of one store. A memo that can't be read or written is merely slow."""

    def __init__(self, path: str, key: Callable[[], bytes]) -> None:
        self._path = path
        self._make_key = key
        self._key = b""
        self._rows: dict[str, tuple[Fingerprint, str, str]] | None = None
        self._new: dict[str, tuple[Fingerprint, str]] = {}
        self._own: dict[str, tuple[Fingerprint, str]] = {}
        self._db: sqlite3.Connection | None = None
        self._lock = RLock()  # Transfers of a shared cache verify in threads of their own.

    def lookup(self, path: str, state: Fingerprint) -> str | None:
        """Return the remembered digest of `path` in exactly this state, or None."""
        for new in (self._new.get(path), self._own.get(path)):
            if new is not None and new[0] == state:
                return new[1]
        if self._rows is None:
            with self._lock:
                rows = self._execute("SELECT * FROM memo")
                self._rows = self._rows or {row[0]: (row[1:6], row[6], row[7]) for row in rows}
        known = self._rows.get(path)
        if known is None or known[0] != state:
            return None
        _, digest, checked = known
        return digest if checked == self._check_value(path, state, digest) else None

    def _check_value(self, path: str, state: Fingerprint, digest: str) -> str:
        self._key = self._key or self._make_key()
        text = f"{path}\0{state}\0{digest}"
        return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16, key=self._key).hexdigest()

    def digest(self, path: str) -> str:
        """Return the SHA-256 of a file, hashing it only if it may have changed.

        Raises OSError where the file can't be read.
        """
        state = fingerprint(path)
        remembered = self.lookup(path, state)
        if remembered is not None:
            return remembered
        digest = sha256_file(path)
        if fingerprint(path) == state:
            self.remember(path, state, digest)
        return digest

    def remember(self, path: str, state: Fingerprint, digest: str) -> None:
        """Keep a digest that was computed from a file in this state, if the state has settled."""
        if time.time_ns() - max(state[1], state[2]) >= _SETTLED_NS:
            with self._lock:
                self._new[path] = (state, digest)

    def vouch(self, path: str, state: Fingerprint, digest: str) -> None:
        """Keep, for this process alone, the digest of a file which nobody could write to meanwhile."""
        self._own[path] = (state, digest)

    def flush(self) -> None:
        """Write what was learnt. Concurrent writers wait for each other, at most 5 s."""
        with self._lock:
            if not self._new:
                return
            rows = [(p, *s, d, self._check_value(p, s, d)) for p, (s, d) in self._new.items()]
            self._execute("INSERT OR REPLACE INTO memo VALUES (?,?,?,?,?,?,?,?)", rows)
            if self._rows is not None:
                self._rows.update({row[0]: (row[1:6], row[6], row[7]) for row in rows})
            self._new.clear()

    def _execute(self, sql: str, rows: Sequence[tuple[Any, ...]] = ()) -> list[tuple[Any, ...]]:
        import sqlite3

        for attempt in range(2):
            try:
                db = self._connect()
                if not rows:
                    return db.execute(sql).fetchall()
                with db:
                    db.executemany(sql, rows)
                return []
            except sqlite3.OperationalError as error:
                if "locked" in str(error) or "readonly" in str(error) or "unable" in str(error):
                    return []
                self._discard(attempt)
            except (sqlite3.DatabaseError, OverflowError):
                self._discard(attempt)
        return []

    def _connect(self) -> sqlite3.Connection:
        if self._db is None:
            import sqlite3

            self._db = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.execute(_SCHEMA)
        return self._db

    def _discard(self, attempt: int) -> None:
        """Drop a database that can't be used; the first time also from the disk."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if attempt == 0:
            for suffix in ("", "-wal", "-shm", "-journal"):
                try:
                    os.unlink(self._path + suffix)
                except OSError:
                    continue

    def close(self) -> None:
        """Write what was learnt and close the database."""
        self.flush()
        if self._db is not None:
            self._db.close()
            self._db = None
