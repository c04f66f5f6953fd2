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
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from ..errors import GateError, UsageError

__all__ = ["local_folder"]

_REMOTE = ("s3", "hf")
_CHUNK_BYTES = 1 << 20
_MOST_MEMBERS = 100_000
_LEAST_BYTES, _MOST_TIMES = 64 << 20, 100
_PACKED_BYTES = 1 << 13
"""Unpacked, so many bytes of bzip2, the densest, are 160 MiB at most."""

_Packing = Literal["gz", "bz2", "xz", ""]
_PACKINGS: dict[bytes, _Packing] = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}


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
                fix="use the output `signed` of package.sign, or a copy of it",
            )


def _place(address: str, scratch: Path) -> Path:
    scheme, _, rest = address.partition("://")
    if not rest:
        return Path(address)
    if scheme == "file":
        return Path(unquote(urlsplit(address).path))
    if scheme not in _REMOTE:
        known = "a path, file://, s3://bucket/prefix or hf://owner/name[@revision][/folder]"
        raise UsageError(f"{address} can't be fetched", fix=f"use {known}")
    command = [sys.executable, "-sP", "-m", "deploy_runner.stages.push.download", address, str(scratch)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"the client exited {done.returncode}"
        raise UsageError(f"{address} can't be fetched: {said}")
    return Path(done.stdout.strip())


def _unpack(archive: Path, target: Path) -> Path:
    """Return the unpacked archive, or the only folder in it."""
    target.mkdir()
    room = max(_LEAST_BYTES, archive.stat().st_size * _MOST_TIMES)
    packing = _packing_of(archive)
    mode: Any = f"r:{packing}"
    damages: tuple[type[Exception], ...] = (tarfile.TarError, EOFError, OSError, ValueError, *_damages())
    try:
        with tarfile.open(archive, mode) as tar:
            for count, member in enumerate(tar):
                room -= member.size
                if room < 0 or count >= _MOST_MEMBERS:
                    raise GateError(f"{archive.name} unpacks to far more than its size and is rejected")
                _extract(tar, member, target)
            _refuse_more(archive, packing, tar.offset, room)
    except damages as error:
        raise GateError(f"{archive.name} can't be unpacked: {str(error) or 'it is damaged'}") from None
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def _damages() -> tuple[type[Exception], ...]:
    """Return what the unpackers raise for damaged data; a Python may lack lzma."""
    import zlib

    try:
        from lzma import LZMAError
    except ImportError:
        return (zlib.error,)
    return (zlib.error, LZMAError)


def _packing_of(archive: Path) -> _Packing:
    with archive.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in _PACKINGS.items() if start.startswith(magic)), "")


def _refuse_more(archive: Path, packing: _Packing, end: int, room: int) -> None:
    """Refuse what lies after a tar's end, which another reader may take for more files of it.

    There may be zeros up to a whole record, as tar(1) writes them, and no second stream of the packing.
    """
    position = 0
    with archive.open("rb") as file:
        unpacker = _unpacker(packing)
        while packed := file.read(_PACKED_BYTES):
            data = packed if unpacker is None else unpacker.decompress(packed)
            if data[max(end - position, 0) :].strip(b"\0") or position - end > room:
                raise GateError(f"{archive.name} has data after its end and is rejected")
            position += len(data)
            if unpacker is not None and unpacker.eof and (unpacker.unused_data or file.read(1)):
                raise GateError(f"{archive.name} has compressed data after its end and is rejected")
    if unpacker is not None and not unpacker.eof:
        raise EOFError("it is truncated")


def _unpacker(packing: _Packing) -> Any:
    """Return what unpacks one stream and says where it ends."""
    if packing == "gz":
        import zlib

        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    if packing == "bz2":
        import bz2

        return bz2.BZ2Decompressor()
    if packing == "xz":
        import lzma

        return lzma.LZMADecompressor()
    return None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one member; tarfile's own filters can be escaped on older Pythons (CVE-2025-4517)."""
    parts = Path(member.name).parts
    if member.name.startswith("/") or ".." in parts or not (member.isreg() or member.isdir()):
        raise GateError(f"the archive's member {member.name!r} is a link, a device or outside the archive")
    place = target.joinpath(*parts)
    if place.exists() and not (member.isdir() and place.is_dir()):
        raise GateError(f"the archive's member {member.name!r} is contained twice and is rejected")
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None
    with source, place.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
