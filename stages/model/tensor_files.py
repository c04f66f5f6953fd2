"""Write a safetensors file tensor by tensor, so that a checkpoint is never in memory as a whole.

The library's own writer looks at all tensors at once: of a mapped checkpoint it makes every page resident.
The format is the one of https://huggingface.co/docs/safetensors: eight bytes with the header's length,
the header as JSON, then the tensors back to back.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from . import extra_state
from .state_dicts import StateDict
from .ties import place

if TYPE_CHECKING:
    import torch

_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""Name of a torch.dtype → of the format's."""

_ALIGNMENT = 8
_CHUNK_BYTES = 16 << 20
_MOST_HEADER = 100_000_000
"""MAX_HEADER_SIZE of the library."""
_MADV_PAGEOUT = 21
"""linux/mman.h, since Linux 5.4: take pages out of memory; what they hold comes back when it is read."""


def write(path: Path, weights: Mapping[str, Any]) -> dict[str, str]:
    """Write weights; tied tensors are written once. Read the file back and compare, bit for bit.

    Returns alias → name of the tied ones, which is in the file's metadata too. Raises StageError
    for what a safetensors file can't hold.
    """
    weights, metadata = _described(weights)
    kept, tied = _distinct(weights)
    metadata |= {"tied": json.dumps(tied, sort_keys=True)} if tied else {}
    ordered = sorted(kept, key=lambda name: (-kept[name].element_size(), name))
    header, end = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for name in ordered:
        start, end = end, end + kept[name].numel() * kept[name].element_size()
        dtype = _TYPES[_dtype(kept[name])]
        header[name] = {"dtype": dtype, "shape": list(kept[name].shape), "data_offsets": [start, end]}  # type: ignore[dict-item]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in ordered:
            for chunk in _chunks(kept[name]):
                file.write(chunk)
    with path.open("rb") as file:
        file.seek(8 + len(text))
        for name in ordered:
            if any(file.read(len(chunk)) != chunk for chunk in _chunks(kept[name])):
                raise StageError(f"{name!r} has different content after writing", fix="check the disk")
    return tied


def _described(weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors to write, and as metadata what else a state_dict says, each part as JSON."""
    packed: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for name, value in weights.items():
        if name.endswith(extra_state.SUFFIX):
            packed[name], inner = extra_state.pack(name, value)
            tensors |= inner
        else:
            tensors[name] = value
    said: dict[str, Any] = {"extra_state": packed}
    if isinstance(weights, StateDict):
        said |= {"versions": weights.versions, "stripped": weights.stripped}
    return tensors, {"format": "pt"} | {name: json.dumps(part) for name, part in said.items() if part}


def names(path: Path) -> set[str]:
    """Return the names of a file's tensors. Raises StageError where it isn't one of safetensors."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return set(json.loads(file.read(min(length, _MOST_HEADER)))) - {"__metadata__"}
    except (struct.error, ValueError, TypeError):
        raise StageError(f"{path.name} is not a safetensors file") from None


def read(path: Path) -> StateDict:
    """Return the tensors of a safetensors file, mapped from it, tied ones under each of their names.

    Raises StageError where it isn't one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        return _complete(weights, metadata)
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise StageError(f"{path.name} is not a safetensors file: {error}") from None


def _complete(weights: dict[str, Any], metadata: Mapping[str, str]) -> StateDict:
    tied = json.loads(metadata.get("tied", "{}"))
    weights |= {alias: weights[name] for alias, name in tied.items() if name in weights}
    extra = json.loads(metadata.get("extra_state", "{}"))
    values = {name: extra_state.unpack(packed, weights) for name, packed in extra.items()}
    inner = {name for name in weights for key in extra if name.startswith(f"{key}.")}
    versions = {str(k): dict(v) for k, v in json.loads(metadata.get("versions", "{}")).items()}
    stripped = [str(wrapper) for wrapper in json.loads(metadata.get("stripped", "[]"))]
    kept = {name: tensor for name, tensor in weights.items() if name not in inner}
    return StateDict(kept | values, versions=versions, stripped=stripped)


def _distinct(weights: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors under their first name, and alias → name of the others."""
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...] | None, str] = {}
    for name in sorted(weights):
        tensor = weights[name]
        _refuse(name, tensor)
        where = place(tensor)
        if where in seen:
            tied[name] = seen[where]
            continue
        if where is not None:
            seen[where] = name
        kept[name] = tensor.detach()
    return kept, tied


def _refuse(name: str, tensor: Any) -> None:
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not isinstance(tensor, torch.Tensor):
        raise StageError(f"{name!r} of the state_dict is a {type(tensor).__name__}, not a tensor",
                         fix="select the key of the weights, or save the weights only")  # fmt: skip
    if is_traceable_wrapper_subclass(tensor):
        raise StageError(f"{name!r} of the state_dict is a {type(tensor).__name__}, made of several tensors",
                         fix="start from the float checkpoint")  # fmt: skip
    if tensor.is_quantized or tensor.layout != torch.strided:
        raise StageError(f"{name!r} is a quantized or sparse tensor, which safetensors doesn't support",
                         fix="start from the float checkpoint")  # fmt: skip
    if tensor.device.type == "meta":
        raise StageError(f"{name!r} has no values: it is on the meta device", fix="save the trained model")
    if _dtype(tensor) not in _TYPES:
        raise StageError(f"{name!r} is {_dtype(tensor)}, which safetensors doesn't support",
                         fix="cast it before saving, e.g. to float32")  # fmt: skip


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield a tensor's bytes; those that a file has anyway leave the memory behind them."""
    import torch

    if not tensor.numel():
        return
    flat = tensor.contiguous().flatten().view(torch.uint8)
    view, start = flat.numpy().data, flat.data_ptr()
    for at in range(0, len(view), _CHUNK_BYTES):
        yield view[at : at + _CHUNK_BYTES]
        if flat.data_ptr() == tensor.data_ptr():
            _let_go(start + at, min(_CHUNK_BYTES, len(view) - at))


def _let_go(start: int, size: int) -> None:
    """Take whole pages out of memory, where the system can: without effect on what they hold."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_PAGEOUT)
