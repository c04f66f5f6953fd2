"""Unpack an untrusted tar archive, compressed by gzip, bzip2 or xz, or not at all.

tarfile's own filters can be escaped on older Pythons (CVE-2025-4517), so they are not relied on.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO, Any

from .reasons import first_line

__all__ = ["BadArchive", "is_archive", "unpack"]

_CHUNK_BYTES = 1 << 20
_PACKED_BYTES = 1 << 13
"""This many bytes of bzip2, the densest, unpack to 160 MiB at most."""
_MOST_MEMBERS = 100_000
_SURE_BYTES, _MOST_TIMES = 64 << 20, 100
"""An archive that unpacks to more than both is treated as a bomb."""
_HEADER_BYTES = 1 << 20
_LONG_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_BLOCK_BYTES = tarfile.BLOCKSIZE


class BadArchive(Exception):
    """An archive is damaged, or has a member that is not allowed; the message is a sentence."""


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar archive, by its first bytes."""
    with path.open("rb") as file:
        return _unpacker(file) is not None or tarfile.is_tarfile(path)


def unpack(archive: Path, target: Path) -> None:
    """Extract regular files and folders into a folder, which is created, and reject everything else.

    Raises BadArchive for links, devices, names that are outside the folder or duplicate, for bombs, and for
    data after the archive's end, which another reader may take for more members.
    """
    target.mkdir(parents=True, exist_ok=True)
    room = max(_SURE_BYTES, archive.stat().st_size * _MOST_TIMES)
    damages: tuple[type[Exception], ...] = (tarfile.TarError, EOFError, OSError, ValueError, *_damages())
    try:
        with archive.open("rb") as file:
            content = _Content(archive.name, file, 2 * room)  # It includes the headers.
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_Member) as tar:  # type: ignore[call-overload]
                for count, member in enumerate(tar):
                    room -= member.size
                    if room < 0 or count >= _MOST_MEMBERS:
                        raise BadArchive(f"{archive.name} unpacks to far more than its size and is rejected")
                    _extract(tar, member, target)
                content.refuse_more(tar.offset)
    except damages as error:
        raise BadArchive(f"{archive.name} can't be unpacked: {first_line(error)}") from None


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Read a header. Raises ValueError if its continuation would fill the memory."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG_HEADERS and member.size > _HEADER_BYTES:
            raise ValueError(f"a header has {member.size} bytes")
        return member


class _Content:
    """The unpacked content of an archive, as a stream for tarfile, of at most `room` bytes."""

    def __init__(self, name: str, file: IO[bytes], room: int) -> None:
        self._name, self._file, self._room = name, file, room
        self._unpacker = _unpacker(file)
        self._position = 0
        self._last = b""

    def read(self, size: int = 0) -> bytes:
        """Return the next bytes, however many; none at the end."""
        data = b""
        while not data:
            packed = self._file.read(_PACKED_BYTES)
            if not packed:
                if self._unpacker is not None and not self._unpacker.eof:
                    raise EOFError("it is truncated")
                return b""
            data = packed if self._unpacker is None else self._unpacked(packed)
        self._position += len(data)
        if self._position > self._room:
            raise BadArchive(f"{self._name} unpacks to far more than its size and is rejected")
        self._last = self._last[-_BLOCK_BYTES:] + data
        return data

    def _unpacked(self, packed: bytes) -> bytes:
        data: bytes = self._unpacker.decompress(packed)
        if self._unpacker.eof and (self._unpacker.unused_data or self._file.read(1)):
            raise BadArchive(f"{self._name} has compressed data after its end and is rejected")
        return data

    def refuse_more(self, end: int) -> None:
        """Check that only zeros, as tar(1) writes them, follow the block at `end`, the last one read."""
        rest = self._last[end - self._position + len(self._last) :]
        while not rest.strip(b"\0"):
            rest = self.read()
            if not rest:
                return
        raise BadArchive(f"{self._name} has data after its end and is rejected")


def _unpacker(file: IO[bytes]) -> Any:
    """Return a decompressor of one stream, which knows its end; None if the file isn't compressed."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        import zlib

        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    if start.startswith(b"BZh"):
        import bz2

        return bz2.BZ2Decompressor()
    if start == b"\xfd7zXZ\0":
        import lzma

        return lzma.LZMADecompressor()
    return None


def _damages() -> tuple[type[Exception], ...]:
    """Return what decompressors raise for damaged data; a Python may lack lzma."""
    import zlib

    try:
        from lzma import LZMAError
    except ImportError:
        return (zlib.error,)
    return (zlib.error, LZMAError)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    parts = Path(member.name).parts
    if member.name.startswith("/") or ".." in parts or not (member.isreg() or member.isdir()):
        raise BadArchive(f"the archive's member {member.name!r} is a link, a device or outside the archive")
    place = target.joinpath(*parts)
    if place.exists() and not (member.isdir() and place.is_dir()):
        raise BadArchive(f"the archive's member {member.name!r} is contained twice and is rejected")
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None
    with source, place.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
