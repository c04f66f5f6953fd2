"""Rewrite the archives that torch writes: records in order, some left out, some changed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["DEBUG", "rewrite"]

DEBUG = (".debug_pkl",)
"""What TorchScript's records of source paths end in."""
_WRITERS_OWN = (
    "version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
    ".data/version",
)


def rewrite(
    archive: io.BytesIO | Path, made: IO[bytes], *, leave_out: tuple[str, ...] = (),
    changed: Callable[[str, bytes], bytes] = lambda name, record: record,
) -> None:  # fmt: skip
    """Copy an archive's records into an open file, sorted by name, without those whose names end so.

    The bytes don't depend on the archive's own name.
    """
    import torch

    if isinstance(archive, io.BytesIO):
        archive.seek(0)
    reader = torch._C.PyTorchFileReader(str(archive) if isinstance(archive, Path) else archive)
    writer = torch._C.PyTorchFileWriter(made)
    for name in sorted(reader.get_all_records()):
        if name not in _WRITERS_OWN and not name.endswith(leave_out):
            record = changed(name, reader.get_record(name))
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
