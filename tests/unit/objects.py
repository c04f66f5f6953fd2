"""What is put into a store by its tests."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from deploy_runner.store.cas import Store
from deploy_runner.store.folders import Member

__all__ = ["MEMBERS", "digest", "file", "folder", "spoil"]


def digest(data: bytes) -> str:
    """Return the name of an object with this content."""
    return sha256(data).hexdigest()


def file(store: Store, data: bytes = b"weights", name: str = "made") -> Path:
    """Write a file to be taken into the store."""
    path = store.new_tmp() / name
    path.write_bytes(data)
    return path


def folder(store: Store, name: str = "folder") -> Path:
    """Two files, one of them executable, one of them deep, and an empty folder."""
    path = store.new_tmp() / name
    (path / "sub/empty").mkdir(parents=True)
    (path / "run.sh").write_bytes(b"#!")
    (path / "run.sh").chmod(0o755)
    (path / "sub/data").write_bytes(b"data")
    return path


MEMBERS = [Member("run.sh", digest(b"#!"), 2, True), Member("sub/data", digest(b"data"), 4, False)]


def spoil(path: Path, data: bytes) -> None:
    """Write into an object, which is read-only."""
    path.chmod(0o644)
    path.write_bytes(data)
