"""Zip archives that hold weights: which kind one is, and that its records are what they claim to be."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

from deploy_runner.sdk import StageError

from ..model.programs import kind_among

Kind = Literal["torch", "torchscript", "pt2", "npz"]

_MOST_MEMBERS = 1_000_000
_SURE_BYTES = 16 << 20
_MOST_COMPRESSED = 50
"""Beyond the bytes that are always allowed, no archive of weights expands to more times its size."""
_ALIGNMENT = 64
_HEADER_BYTES = 30
_CHUNK_BYTES = 1 << 20


def kind(path: Path) -> Kind:
    """Return what a zip archive is, by the names of its records. Raises StageError for anything else."""
    with path.open("rb") as file:
        members = _members(file)
        names = {member.filename.partition("/")[2] for member in members}
        program = kind_among(member.filename for member in members)
        if program == "aot":
            raise StageError("the file is a package of AOTInductor: machine code, not a checkpoint",
                             fix="use the training checkpoint that it was created from")  # fmt: skip
        if program is not None:
            return program
        check(file, members)
    if "data.pkl" in names:
        return "torch"
    if members and all(member.filename.endswith(".npy") for member in members):
        return "npz"
    raise StageError("the file is a zip archive that torch.save did not write",
                     fix="if the checkpoint is inside it, unpack it first")  # fmt: skip


def is_saved(data: bytes) -> bool:
    """Say whether bytes are what torch.save writes to a buffer."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    with contextlib.suppress(StageError):
        return any(member.filename.endswith("/data.pkl") for member in _members(io.BytesIO(data)))
    return False


def _members(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        raise StageError("the checkpoint is truncated or damaged: the zip directory is missing",
                         fix="copy it again from where it was trained") from None  # fmt: skip


def check(file: IO[bytes], members: Sequence[zipfile.ZipInfo] | None = None) -> None:
    """Refuse encryption, names given twice or outside, and records larger than real ones can be."""
    members = _members(file) if members is None else members
    file_bytes = file.seek(0, io.SEEK_END)
    names = {member.filename for member in members}
    if len(members) > _MOST_MEMBERS or len(names) < len(members):
        raise StageError("the checkpoint's archive contains a record twice, or far too many records")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 0x1:
            raise StageError(f"the checkpoint's record {member.filename!r} is encrypted, or compressed in a "
                             "way that torch can't read", fix="save it again with torch.save")  # fmt: skip
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise StageError(f"the checkpoint's record {member.filename!r} has a path outside the archive")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise StageError("the checkpoint's records are larger than the file")
    if sum(member.compress_size for member in members) > file_bytes:
        raise StageError("the checkpoint's records are larger than the file")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_SURE_BYTES, _MOST_COMPRESSED * file_bytes):
        raise StageError(f"the checkpoint is compressed, and would expand to {unpacked / 1e9:.1f} GB, more "
                         f"than {_MOST_COMPRESSED} times its size",
                         fix="save it again with torch.save")  # fmt: skip


class Stored(NamedTuple):
    """An archive without compression, and the pickle that torch reads from it."""

    path: Path
    pickle: io.BytesIO


@contextlib.contextmanager
def stored(path: Path) -> Iterator[Stored]:
    """Give the archive as torch.save writes it: itself, or while it is read a copy without compression.

    Only from records that are not compressed can tensors be mapped. They are aligned as torch's are.
    """
    with zipfile.ZipFile(path) as archive:
        if all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist()):
            yield Stored(path, pickle_of(archive))
            return
        with tempfile.NamedTemporaryFile(suffix=".pt") as copy:
            with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as made:
                for member in archive.infolist():
                    with (
                        archive.open(member) as source,
                        made.open(_aligned(member, copy.tell()), "w") as target,
                    ):
                        shutil.copyfileobj(source, target, _CHUNK_BYTES)
            copy.flush()
            yield Stored(Path(copy.name), pickle_of(archive))


def pickle_of(archive: zipfile.ZipFile) -> io.BytesIO:
    """Return the pickle that torch reads: the one in the folder of the first record."""
    try:
        folder = archive.namelist()[0].partition("/")[0]
        return io.BytesIO(archive.read(f"{folder}/data.pkl"))
    except (KeyError, IndexError, zipfile.BadZipFile, OSError, EOFError, ValueError):
        return io.BytesIO()


def _aligned(member: zipfile.ZipInfo, start: int) -> zipfile.ZipInfo:
    """Return a record whose content begins at a multiple of the alignment, by a field that nobody reads."""
    found = zipfile.ZipInfo(member.filename)
    found.file_size = member.file_size
    large = 20 if member.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0
    begin = start + _HEADER_BYTES + len(member.filename.encode()) + large + 4
    padding = -begin % _ALIGNMENT
    found.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
    return found
