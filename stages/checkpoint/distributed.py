"""Read a folder of torch.distributed.checkpoint (DCP, FSDP), however many processes have written it.

`.metadata` is a pickle. Of what it names nothing is imported: each of torch's metadata classes is read as a
plain record, and everything else is refused. Each item in a shard is what torch.save writes of it.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from deploy_runner.sdk import StageError, first_line

from . import pickles, spare
from .folders import METADATA, is_name

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
}  # fmt: skip
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_OPTIMIZER = re.compile(r"opt(im(izers?)?)?(_states?|_state_dict)?", re.IGNORECASE)
_COPY_AGAIN = "copy every file of the folder, from all machines that wrote to it"


class _Foreign(pickle.UnpicklingError):
    """The pickle names something that the metadata never has."""


class _Record:
    """What stands for an object of a metadata class: its attributes, or its state where that is a tuple."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)
        else:
            self.state = state


class _Unpickler(pickle._Unpickler):  # Python's own: that in C allocates what a file claims to need.
    """Read the metadata's classes as records."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name. Raises _Foreign for what the metadata never has."""
        import torch

        if name in _CLASSES.get(module, ()):
            return type(name, (_Record,), {})
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return PurePosixPath
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("torch.serialization", "_get_layout"):
            return str
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise _Foreign(f"{module}.{name}")


class _Chunk(NamedTuple):
    """A part of a tensor, or the whole of another value: where it belongs, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class _Item(NamedTuple):
    """A tensor as the metadata describes it; without a type, another value."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    chunks: list[_Chunk]

    def meta(self) -> torch.Tensor:
        """Return it without its values."""
        import torch

        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def read(folder: Path) -> dict[str, Any]:
    """Return what was saved, nested as it was, without the optimizer's state."""
    try:
        with (folder / METADATA).open("rb") as file:
            items = _items(_Unpickler(file).load())
    except _Foreign as error:
        raise StageError(f"{METADATA} is a pickle that runs code: {str(error)[:200]}; nothing was executed",
                         fix="use the folder that torch.distributed.checkpoint wrote") from None  # fmt: skip
    except StageError:
        raise
    except Exception as error:  # A damaged pickle takes Python anywhere.
        said = first_line(error) or type(error).__name__
        raise StageError(f"{METADATA} is not the metadata of a distributed checkpoint: {said[:200]}",
                         fix=_COPY_AGAIN) from None  # fmt: skip
    wanted = [item for item in items if not any(_OPTIMIZER.fullmatch(part) for part in item.path[:-1])]
    _check(folder, wanted)
    tensors = spare.allocate({item.path: item.meta() for item in wanted if item.dtype is not None})
    content: dict[str, Any] = {}
    for item in wanted:
        inner = content
        for part in item.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[item.path[-1]] = _filled(folder, item, tensors) if item.dtype else _loaded(folder, item, 0)
    return content


def _items(metadata: Any) -> list[_Item]:
    """Return what the metadata describes. Raises whatever Python does where it is anything else."""
    import torch

    places: dict[str, list[tuple[tuple[int, ...], Any]]] = defaultdict(list)
    for index, place in metadata.storage_data.items():
        if getattr(place, "transform_descriptors", None):
            raise StageError("the distributed checkpoint is compressed or encrypted",
                             fix="save it without `extensions`")  # fmt: skip
        places[index.fqn].append((_sizes(getattr(index, "offset", None) or ()), place))
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    items = []
    for name, said in metadata.state_dict_metadata.items():
        tensor = hasattr(said, "chunks")
        sizes = {_sizes(c.offsets): _sizes(c.sizes) for c in said.chunks} if tensor else {_sizes(()): ()}
        chunks = [
            _Chunk(at, sizes[at], str(place.relative_path), int(place.offset), int(place.length))
            for at, place in places[name]
        ]
        path = tuple(str(part) for part in paths.get(name, (name,))) or (str(name),)
        dtype = said.properties.state[0] if tensor else None
        if not isinstance(dtype, torch.dtype | None):
            raise TypeError(f"{name!r} has no type")
        items.append(_Item(path, _sizes(said.size) if tensor else (), dtype, chunks))
    return items


def _sizes(numbers: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers)


def _name(item: _Item) -> str:
    return ".".join(item.path)


def _check(folder: Path, items: Sequence[_Item]) -> None:
    """Refuse chunks that their tensors or files can't hold, that leave a gap, and values in one place."""
    for item in items:
        if sum(math.prod(c.sizes) for c in item.chunks) != math.prod(item.shape):
            raise StageError(f"{METADATA} doesn't say where all of {_name(item)!r} is", fix=_COPY_AGAIN)
        for chunk in item.chunks:
            _check_chunk(folder, item, chunk)
        if _overlap(item.chunks):
            raise StageError(f"{METADATA} says twice where a part of {_name(item)!r} is", fix=_COPY_AGAIN)
    names = {item.path for item in items}
    inside = any(path[:at] in names for path in names for at in range(1, len(path)))
    files = {chunk.file for item in items for chunk in item.chunks}
    most = sum((folder / name).stat().st_size for name in files)
    if inside or len(names) < len(items) or sum(c.length for i in items for c in i.chunks) > most:
        raise StageError(f"{METADATA} lists values that overlap", fix=_COPY_AGAIN)


def _check_chunk(folder: Path, item: _Item, chunk: _Chunk) -> None:
    place = folder / chunk.file
    if not is_name(chunk.file) or not place.is_file():
        raise StageError(f"{METADATA} lists the shard {chunk.file!r}, which is not in the folder",
                         fix=_COPY_AGAIN)  # fmt: skip
    ranks = {len(chunk.offsets), len(chunk.sizes), len(item.shape)}
    ranges = zip(chunk.offsets, chunk.sizes, item.shape, strict=False)
    fits = len(ranks) == 1 and all(min(at, size) >= 0 and at + size <= most for at, size, most in ranges)
    least = math.prod(chunk.sizes) * item.dtype.itemsize if item.dtype else 0
    if not fits or chunk.length < least or not 0 <= chunk.start <= place.stat().st_size - chunk.length:
        raise StageError(f"{_name(item)!r} is not within its shard {chunk.file}", fix=_COPY_AGAIN)


def _overlap(chunks: Sequence[_Chunk]) -> bool:
    """Say whether two chunks have a value in common; by their order, few are compared with each other."""
    near: list[_Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets):
        near = [other for other in near if other.offsets[0] + other.sizes[0] > chunk.offsets[0]]
        for other in near:
            sides = zip(chunk.offsets, chunk.sizes, other.offsets, other.sizes, strict=True)
            if all(at < there + its and there < at + size for at, size, there, its in sides):
                return True
        if chunk.offsets and all(chunk.sizes):
            near.append(chunk)
    return False


def _loaded(folder: Path, item: _Item, index: int) -> Any:
    chunk = item.chunks[index]
    with (folder / chunk.file).open("rb") as file:
        file.seek(chunk.start)
        data = file.read(chunk.length)
    if item.dtype is None and not data.startswith((b"PK", b"\x80")):
        return data
    try:
        return pickles.read_bytes(data)
    except StageError as error:
        raise StageError(f"{_name(item)!r} in {chunk.file}: {error.message}", fix=error.fix) from None


def _filled(folder: Path, item: _Item, tensors: Mapping[tuple[str, ...], torch.Tensor]) -> torch.Tensor:
    """Return the tensor with its chunks in it."""
    import torch

    whole = tensors[item.path]
    for index, chunk in enumerate(item.chunks):
        part = _loaded(folder, item, index)
        if not isinstance(part, torch.Tensor) or (tuple(part.shape), part.dtype) != (chunk.sizes, item.dtype):
            raise StageError(f"{_name(item)!r} in {chunk.file} is not what {METADATA} says", fix=_COPY_AGAIN)
        target = whole
        for axis, (at, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            target = target.narrow(axis, at, size)
        target.copy_(part.detach())
    return whole
