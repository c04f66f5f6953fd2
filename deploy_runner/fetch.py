"""Bring what an address names into a folder here: a folder, a tar archive, `s3://…` or `hf://…`.

What comes from outside is not trusted: an archive is unpacked member by member, and the clients of
remotes run in a process of their own.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from .errors import GateError, UsageError

__all__ = ["local_folder"]

_REMOTE = ("s3", "hf")
_CHUNK_BYTES = 1 << 20
_MOST_MEMBERS = 100_000
_LEAST_BYTES, _MOST_TIMES = 64 << 20, 100


@contextmanager
def local_folder(address: str) -> Iterator[Path]:
    """Yield the folder that an address names, or a copy of it that lasts as long as the block.

    Raises UsageError for an address that leads to no folder or archive, GateError for an archive
    that holds anything but files and folders of its own.
    """
    with TemporaryDirectory(prefix="deploy-runner-") as scratch:
        place = _place(address, Path(scratch, "fetched"))
        if place.is_dir():
            yield place
        elif place.is_file() and tarfile.is_tarfile(place):
            yield _unpack(place, Path(scratch, "unpacked"))
        else:
            raise UsageError(
                f"{address} is not a folder or a tar archive",
                fix="name the output `signed` of package.sign, or a copy of it",
            )


def _place(address: str, scratch: Path) -> Path:
    scheme, _, rest = address.partition("://")
    if not rest:
        return Path(address)
    if scheme == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme not in _REMOTE:
        known = "a path, file://, s3://bucket/prefix or hf://owner/name[@revision][/folder]"
        raise UsageError(f"{address} can't be fetched", fix=f"name {known}")
    command = [sys.executable, "-sP", "-m", "deploy_runner.stages._download", address, str(scratch)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"the client exited {done.returncode}"
        raise UsageError(f"{address} can't be fetched: {said}")
    return Path(done.stdout.strip())


def _unpack(archive: Path, target: Path) -> Path:
    """Return the unpacked archive, or the only folder in it."""
    target.mkdir()
    room = max(_LEAST_BYTES, archive.stat().st_size * _MOST_TIMES)
    try:
        with tarfile.open(archive) as tar:
            for count, member in enumerate(tar):
                room -= member.size
                if room < 0 or count >= _MOST_MEMBERS:
                    raise GateError(f"{archive.name} unpacks to far more than it is: it is refused")
                _extract(tar, member, target)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise GateError(f"{archive.name} can't be unpacked: {str(error) or 'it is damaged'}") from None
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one member; tarfile's own filters can be escaped on older Pythons (CVE-2025-4517)."""
    parts = Path(member.name).parts
    if member.name.startswith("/") or ".." in parts or not (member.isreg() or member.isdir()):
        raise GateError(f"the archive's member {member.name!r} is a link, a device or leads out of it")
    place = target.joinpath(*parts)
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None
    with source, place.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
