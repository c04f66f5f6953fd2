"""Move the weights of ONNX models from file to file without reading them into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from .protos import DATA_NAME, FILE_NAME, SINGLE_FILE_BYTES, clean, save_proto, tensors_of

if TYPE_CHECKING:
    import onnx

__all__ = ["gather_data", "move_proto", "take_data"]

_ALIGNMENT = 4096
"""So that runtimes may map each tensor."""

_CHUNK_BYTES = 1 << 20
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of fields: of ModelProto, GraphProto and TensorProto."""


def move_proto(model: onnx.ModelProto, source: Path, folder: Path) -> Path:
    """Write a model that was read without its weights into a folder, as save_proto does.

    External data, in `source`, is copied without being read into memory: into the model's file, or if
    large into one beside it. A file of it that is laid out so already is moved there.
    """
    outside = [tensor for tensor in tensors_of(model) if tensor.data_location == 1]
    if not outside:
        return save_proto(model, folder)
    clean(model)
    folder.mkdir(exist_ok=True)
    file = folder / FILE_NAME
    if sum(_place(tensor, source)[2] for tensor in outside) < SINGLE_FILE_BYTES:
        _write_whole(model, source, file)
    else:
        if (whole := _laid_out(outside, source)) is None:
            gather_data(model, source, folder)
        else:
            whole.replace(folder / DATA_NAME)
            for tensor in outside:
                next(entry for entry in tensor.external_data if entry.key == "location").value = DATA_NAME
        file.write_bytes(model.SerializeToString(deterministic=True))
    return file


def _laid_out(outside: Sequence[onnx.TensorProto], source: Path) -> Path | None:
    """Return the one file that has all external data and little else, each tensor aligned, if it is so."""
    places = [_place(tensor, source) for tensor in outside]
    (file, *others) = {file for file, _, _ in places}
    if (
        others
        or file.parent != source
        or any(offset % _ALIGNMENT for _, offset, length in places if length >= _ALIGNMENT)
    ):
        return None
    room = _ALIGNMENT * len(places) + sum(length for _, _, length in places)
    return file if file.stat().st_size <= room else None


def _write_whole(model: onnx.ModelProto, source: Path, file: Path) -> None:
    """Write a model with its external data inside.

    A message may have its fields in any order: the weights are the last of the graph's, which is the last
    of the model's.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    del rest.graph.initializer[:]
    for tensor in tensors_of(rest):
        if tensor.data_location == 1:
            load_external_data_for_tensor(tensor, str(source))
    graph = rest.graph.SerializeToString(deterministic=True)
    rest.ClearField("graph")
    weights = [(tensor, *_head(tensor, source)) for tensor in model.graph.initializer]
    fields = [_field(_INITIALIZER, len(head) + follows) + head for _, head, follows in weights]
    total = len(graph) + sum(map(len, fields)) + sum(follows for _, _, follows in weights)
    with file.open("wb", buffering=0) as written:
        _write(written, rest.SerializeToString(deterministic=True) + _field(_GRAPH, total) + graph)
        for (tensor, _, follows), field in zip(weights, fields, strict=True):
            _write(written, field)
            if follows:
                _copy(tensor, source, written)


def _head(tensor: onnx.TensorProto, source: Path) -> tuple[bytes, int]:
    """Return a tensor as a message up to its external data, and how many bytes of that follow."""
    import onnx

    if tensor.data_location != 1:
        return tensor.SerializeToString(deterministic=True), 0
    head = onnx.TensorProto()
    head.CopyFrom(tensor)
    head.ClearField("external_data")
    head.ClearField("data_location")
    length = _place(tensor, source)[2]
    return head.SerializeToString(deterministic=True) + _field(_RAW_DATA, length), length


def _field(number: int, length: int) -> bytes:
    """Return what stands before a field of bytes in a message."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def gather_data(model: onnx.ModelProto, source: Path, folder: Path) -> None:
    """Copy the external data of a model from `source` into one file of a folder."""
    folder.mkdir(exist_ok=True)
    with (folder / DATA_NAME).open("wb", buffering=0) as data:
        for tensor in tensors_of(model):
            if tensor.data_location == 1:
                _append(tensor, source, data)


def take_data(model: onnx.ModelProto, source: Path, folder: Path) -> None:
    """Take the external data of a model out of `source`: into the model, or if large into one file.

    It has to be checked before.
    """
    from onnx.external_data_helper import load_external_data_for_model

    files = {
        source / entry.value
        for tensor in tensors_of(model)
        if tensor.data_location == 1
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if sum(file.stat().st_size for file in files) > SINGLE_FILE_BYTES:
        gather_data(model, source, folder)
    elif files:
        load_external_data_for_model(model, str(source))


def _append(tensor: onnx.TensorProto, source: Path, data: FileIO) -> None:
    """Copy a tensor's external data to the end of `data`, and say so in the tensor."""
    _write(data, b"\0" * (-data.tell() % _ALIGNMENT))
    start = data.tell()
    _copy(tensor, source, data)
    del tensor.external_data[:]
    for key, value in (("location", DATA_NAME), ("offset", start), ("length", data.tell() - start)):
        tensor.external_data.add(key=key, value=str(value))


def _place(tensor: onnx.TensorProto, source: Path) -> tuple[Path, int, int]:
    """Return the file of a tensor's external data, where it begins in it and how long it is."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file, offset = source / entries["location"], int(entries.get("offset", 0))
    length = int(entries["length"]) if "length" in entries else file.stat().st_size - offset
    return file, offset, length


def _copy(tensor: onnx.TensorProto, source: Path, to: FileIO) -> None:
    """Copy a tensor's external data to where a file is, by the kernel alone where it does that."""
    path, offset, left = _place(tensor, source)
    with path.open("rb", buffering=0) as file:
        with suppress(OSError, AttributeError):
            while left > 0 and (copied := os.copy_file_range(file.fileno(), to.fileno(), left, offset)):
                offset, left = offset + copied, left - copied
        file.seek(offset)
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            _write(to, chunk)
            left -= len(chunk)


def _write(file: FileIO, data: bytes) -> None:
    """Write all of it: one call may write less."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
