"""Files of arrays (.npz): written with the same bytes each time, read without trusting what they claim."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, first_line

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

__all__ = ["Members", "array_header", "open_arrays", "read_arrays", "write_arrays"]

_SURE_BYTES = 256 << 20
_MOST_COMPRESSED = 200
"""An archive beyond both is taken for a bomb: data shrinks to a tenth, masks to a hundredth."""


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz whose bytes depend on the arrays alone: no dates, no compression."""
    import io
    import zipfile

    import numpy as np

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())


def read_arrays(path: Path) -> dict[str, Any]:
    """Read an .npz. Raises StageError where it isn't one, or holds anything but numbers."""
    import numpy as np

    with open_arrays(path) as members:
        arrays: dict[str, Any] = {}
        for name, file in members.items():
            shape, fortran, dtype = array_header(name, file, members.sizes[name])
            values = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype)
            if values.size != math.prod(shape):
                raise ValueError(f"the array {name!r} is truncated")
            arrays[name] = values.reshape(shape, order="F" if fortran else "C").copy()
    return arrays


class Members(dict[str, IO[bytes]]):
    """The open members of an .npz by array name, with their sizes in bytes."""

    sizes: dict[str, int]


@contextmanager
def open_arrays(path: Path) -> Iterator[Members]:
    """Open the arrays of an .npz, each to be read as a stream.

    Raises StageError where it isn't one: also for the ValueErrors and the damage that whoever reads
    it meets.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as opened:
            members, sizes = Members(), {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                sizes[name] = info.file_size
                members[name] = opened.enter_context(archive.open(info))
            unpacked = sum(sizes.values())
            if unpacked > _SURE_BYTES and unpacked > _MOST_COMPRESSED * path.stat().st_size:
                raise ValueError(f"it would unpack to {unpacked / 1e9:.1f} GB, which no real data does")
            members.sizes = sizes
            yield members
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError, zlib.error,
            RuntimeError) as error:  # fmt: skip
        if isinstance(error, StageError):
            raise
        raise StageError(f"{path.name} is not an .npz of plain arrays: {first_line(error)}") from None


def array_header(name: str, file: IO[bytes], file_bytes: int) -> tuple[tuple[int, ...], bool, Any]:
    """Return shape, Fortran order and dtype of an open member. Raises ValueError for odd ones."""
    import numpy as np

    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except (SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"the header of the array {name!r} is invalid: {first_line(error)}") from None
    if dtype.hasobject:
        raise ValueError(f"the array {name!r} contains Python objects")
    if dtype.kind not in "biufc":
        raise ValueError(f"the array {name!r} contains {dtype}, not numbers")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize > file_bytes:
        raise ValueError(f"the array {name!r} has the shape {shape}, but {file_bytes} bytes")
    return shape, fortran, dtype
