"""Refuse external data that leaves its file or its folder, before any library reads it.

onnx and onnxruntime check different things (a hard link, a huge or negative offset, a shape that
needs more than there is); a file has to pass all of it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploy_runner.sdk import StageError

from .protos import tensors_of

if TYPE_CHECKING:
    import onnx

_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64,
         14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}  # fmt: skip
"""Bits of an element by onnx.TensorProto.DataType."""


def check_external_data(model: onnx.ModelProto, folder: Path) -> int:
    """Check every external tensor of a model that was read without its data; return how many.

    Raises StageError that names the tensor.
    """
    count = 0
    for tensor in tensors_of(model):
        if tensor.data_location == 1:
            count += 1
            _check(tensor, folder)
    return count


def _check(tensor: onnx.TensorProto, folder: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = PurePosixPath(location.replace("\\", "/"))
    if not location or path.is_absolute() or ".." in path.parts:
        raise StageError(f"the tensor {tensor.name!r} stores its data at {location!r}, outside its folder")
    file = folder / location
    if any((folder / part).is_symlink() for part in (path, *path.parents)):
        raise StageError(f"the tensor {tensor.name!r} stores its data behind the symbolic link {location!r}")
    if not file.is_file():
        raise StageError(f"the tensor {tensor.name!r} stores its data in {location!r}, which does not exist",
                         fix="use the folder that contains the model and its data")  # fmt: skip
    state = os.stat(file, follow_symlinks=False)
    if state.st_nlink > 1:
        raise StageError(f"the tensor {tensor.name!r} stores its data behind the hard link {location!r}")
    offset, length = _number(tensor, entries, "offset", 0), _number(tensor, entries, "length", -1)
    needed = math.prod(tensor.dims) * _BITS.get(tensor.data_type, 8) // 8 if tensor.dims else 0
    if any(size < 0 for size in tensor.dims):
        raise StageError(f"the tensor {tensor.name!r} has the negative shape {list(tensor.dims)}")
    length = needed if length < 0 and "length" not in entries else length
    if length < needed or offset + length > state.st_size:
        raise StageError(f"the tensor {tensor.name!r} needs {max(needed, length)} bytes from {offset} of "
                         f"{location!r}, which has {state.st_size}")  # fmt: skip


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if key in entries and not text.isdecimal():
        raise StageError(f"the {key} {text!r} of the tensor {tensor.name!r} is not a whole number")
    return int(text)
