"""Read any checkpoint that a trainer leaves behind, without running what is inside it.

The format is told from the bytes, never from the file's name.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from deploy_runner.sdk import StageError, first_line

from ..model.npz import read_arrays
from . import archives, distributed, folders, harmless, pickles, programs

if TYPE_CHECKING:
    import numpy as np
    import torch

Format = Literal[
    "torch", "legacy", "safetensors", "torchscript", "pt2", "npz", "sharded", "distributed", "adapter"
]

_HEAD_BYTES = 512
_INDEX_BYTES = 1 << 20
_OTHERS = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"GGUF": "a GGUF file (llama.cpp)",
    b"\x1f\x8b": "compressed (gzip)",
    b"<!doctype html": "a page of HTML, as a download that needs a login gives",
    b"<html": "a page of HTML, as a download that needs a login gives",
    b"version https://git-lfs": "a pointer of Git LFS: the weights themselves were not downloaded",
}
_TAR = slice(257, 262)
_ZIP = b"PK\x03\x04"
_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""torch's magic number, as the first pickle of its old format has it."""
_MOST_MAGIC_BYTES = 32


class Found(NamedTuple):
    """Where weights are: their format, and the file or folder to read."""

    format: Format
    path: Path


def find(path: Path) -> Found:
    """Return what a file is by its content, or what a folder holds. Raises StageError for anything else."""
    if not path.is_dir():
        return Found(_format(path), path)
    kind, place = folders.find(path)
    return Found(_format(place), place) if kind == "file" else Found(kind, place)


def _format(path: Path) -> Format:
    head = _beginning(path, _HEAD_BYTES)
    if not head:
        raise StageError(
            "the checkpoint is empty (0 bytes)", fix="copy it again: the copy may have been interrupted"
        )
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return "safetensors"
    if head.startswith(_ZIP):
        return archives.kind(path)
    if head.startswith(b"\x80"):
        if _LEGACY in head[:_MOST_MAGIC_BYTES]:
            return "legacy"
        raise StageError("the file is a pickle that torch.save did not write",
                         fix="load it where it was made, and torch.save the model's state_dict")  # fmt: skip
    if head.lstrip().startswith(b"{") and b'"weight_map"' in _beginning(path, _INDEX_BYTES):
        raise StageError("the file is the index of a sharded checkpoint",
                         fix="use the folder that contains it and its shards")  # fmt: skip
    begin = head if head[:1] != b"<" else head.lower()
    other = next((what for start, what in _OTHERS.items() if begin.startswith(start)), "")
    if head[4:8] == b"TFL3":
        other = "a TFLite file"
    if head[_TAR] == b"ustar":
        other = "a tar archive"
    if other:
        raise StageError(f"the file is {other}, not a checkpoint of PyTorch",
                         fix="unpack, convert or download it first")  # fmt: skip
    raise StageError("the file is not a checkpoint: neither torch.save's nor safetensors",
                     fix="use the file that your training loop wrote")  # fmt: skip


def _beginning(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def read(path: Path, *, trust: bool) -> Any:
    """Return what the checkpoint holds: a mapping, or with `trust` a whole module.

    Of a peft adapter those are its own tensors. Tensors are on the CPU, and mapped from the file where
    the format allows it. Raises StageError that names what is wrong, and what to do.
    """
    found = find(path)
    match found.format:
        case "sharded":
            return folders.read_sharded(
                found.path, lambda shard: _read_file(shard, _format(shard), trust=trust)
            )
        case "distributed":
            return distributed.read(found.path)
        case "adapter":
            weights = [found.path / f"adapter_model.{end}" for end in ("safetensors", "bin")]
            place = next((path for path in weights if path.is_file()), None)
            if place is None:
                raise StageError("the adapter's folder has no adapter_model.safetensors", fix="copy it there")
            return _read_file(place, _format(place), trust=trust)
        case form:
            return _read_file(found.path, form, trust=trust)


def _read_file(path: Path, form: Format, *, trust: bool) -> Any:
    match form:
        case "safetensors":
            return read_safetensors(path)
        case "npz":
            return _arrays(path)
        case "torchscript" | "pt2":
            return programs.state_dict(path, form, trust=trust)
        case "torch" | "legacy":
            return _unwrapped(pickles.read(path, form, trust=trust))
        case _:
            raise StageError(f"{path.name} is not a file of weights",
                             fix="use what torch.save, safetensors or numpy.savez wrote")  # fmt: skip


def _unwrapped(content: Any, depth: int = 2) -> Any:
    """Return the content with tensors for arrays in its mappings, and with what buffers hold as it is."""
    if isinstance(content, harmless.Nested):
        content = content.content
    if isinstance(content, bytes) and archives.is_saved(content):
        return pickles.read_bytes(content)
    if not isinstance(content, dict) or not content or not depth:
        return content
    if all(isinstance(value, harmless.Array) for value in content.values()):
        with contextlib.suppress(TypeError):  # Dates and texts are no tensors.
            return _tensors({name: value.values.copy() for name, value in content.items()})
    inside = {name: _unwrapped(value, depth - 1) for name, value in content.items()}
    changed = {name: value for name, value in inside.items() if value is not content[name]}
    return content | changed if changed else content


def _tensors(arrays: Mapping[Any, np.ndarray[Any, Any]]) -> dict[Any, torch.Tensor]:
    """Return arrays as tensors. Raises TypeError where one is of what torch has no type for."""
    import torch

    native = {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}
    return {name: torch.from_numpy(array) for name, array in native.items()}


def _arrays(path: Path) -> dict[Any, torch.Tensor]:
    try:
        return _tensors(read_arrays(path))
    except TypeError as error:
        raise StageError(f"the arrays can't be weights: {first_line(error)}", fix="save float32") from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, mapped from it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise StageError(f"the safetensors file is damaged: {error}", fix="copy it again") from None
