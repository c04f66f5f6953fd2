"""Folders of trainers that would run code, read elsewhere, or claim more than they hold."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as m
from torch.distributed.checkpoint.filesystem import _StorageInfo

from tests.security.pickles import CONTAINERS, OPCODES, reduce_
from tests.security.samples import Place, Sample

__all__ = ["folders"]

_NAME = "model.weight"


def _distributed(place: Place, metadata: bytes, shard: bytes = b"") -> Path:
    (place.folder / ".metadata").write_bytes(metadata)
    (place.folder / "__0_0.distcp").write_bytes(shard or bytes(2000))
    return place.folder


def _claims(
    size: tuple[int, ...] = (4,), file: str = "__0_0.distcp", start: int = 0, length: int = 1200, **more: Any
) -> bytes:
    """Return metadata of one tensor with these claims."""
    chunk = m.ChunkStorageMetadata(torch.Size([0] * len(size)), more.get("sizes", torch.Size(size)))
    tensors: dict[str, Any] = {
        f"{_NAME}{i or ''}": m.TensorStorageMetadata(more.get("properties", m.TensorProperties(torch.float32)), torch.Size(size), [chunk])
        for i in range(more.get("times", 1))
    }  # fmt: skip
    places = {m.MetadataIndex(name, chunk.offsets): _StorageInfo(file, start, length) for name in tensors}
    paths = more.get("paths", {name: ("model", name) for name in tensors})
    return pickle.dumps(m.Metadata(tensors, paths, places, more.get("meta")))


class _Calling:
    """What a hostile object pickles as: a call."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, (f"touch {self._canary}",))


def _metadata(place: Place) -> dict[str, bytes]:
    calling: Any = _Calling(place.canary)
    return {
        "a call beside": _claims(meta=calling),
        "a call for a type": _claims(properties=calling),
        "a call for a shape": _claims(sizes=calling),
        "above": _claims(file="../secret", length=20),
        "absolute": _claims(file=str(place.secret), length=20),
        "negative start": _claims(start=-5),
        "length beyond the file": _claims(length=10**15),
        "huge shape": _claims(size=(2**40,)),
        "overflowing shape": _claims(size=(2**40, 2**40)),
        "negative shape": _claims(size=(-4,)),
        "one place for many": _claims(times=3000),
        "a value inside another": _claims(times=2, paths={_NAME: ("a",), f"{_NAME}1": ("a", "b")}),
        "bytes that are no tensor": _claims(),
        "no metadata": pickle.dumps({"a": 1}),
        "nothing": b"",
        "huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "huge bytearray": b"\x80\x05\x96\x00\x00\x00\x00\x00\x00\x00\x10.",
        "deep": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
        "torch.load": reduce_("torch", "load", str(place.canary)),
        "persistent id": b"\x80\x02U\x01xQ.",
    }


def _index(place: Place, name: str) -> Path:
    (place.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    (place.folder / "x.bin").write_bytes(
        CONTAINERS["zip"](reduce_("posix", "system", f"touch {place.canary}"))
    )
    return place.folder


def _adapter(place: Place, config: bytes) -> Path:
    (place.folder / "adapter_config.json").write_bytes(config)
    (place.folder / "adapter_model.bin").write_bytes(reduce_("posix", "system", f"touch {place.canary}"))
    return place.folder


def _latest(place: Place, name: str) -> Path:
    (place.folder / "latest").write_text(name)
    return place.folder


def _linked(place: Place) -> Path:
    folder = _distributed(place, _claims(length=20))
    (folder / "__0_0.distcp").unlink()
    (folder / "__0_0.distcp").symlink_to(place.secret)
    return folder


def folders() -> Iterator[Sample]:
    """Return every folder."""
    for name in _metadata(Place(Path(), Path("canary"), Path("secret"))):

        def make(place: Place, n: str = name) -> Path:
            return _distributed(place, _metadata(place)[n])

        yield Sample(f"distributed-{name.replace(' ', '_')}", "checkpoint", make)
    for opcode in OPCODES:

        def system(place: Place, o: Any = opcode) -> Path:
            return _distributed(place, o("posix", "system", f"touch {place.canary}"))

        yield Sample(f"distributed-system-{opcode.__name__}", "checkpoint", system)
    for container, wrap in CONTAINERS.items():

        def shard(place: Place, w: Callable[[bytes], bytes] = wrap) -> Path:
            data = w(reduce_("posix", "system", f"touch {place.canary}"))
            return _distributed(place, _claims(length=len(data)), data)

        yield Sample(f"distributed-shard-{container}", "checkpoint", shard)
    yield Sample("distributed-behind-a-link", "checkpoint", _linked)
    for name in ("x.bin", "../secret", "/etc/passwd", ".", "pytorch_model.bin.index.json"):
        yield Sample(f"bin-shards-{name}", "checkpoint", partial(_index, name=name))
    configs = (
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"peft_type": ["LORA"]}',
        b'{"peft_type": "LORA", "r": 1e999}',
        b"{" * 2_000_000,
    )
    for number, config in enumerate(configs):
        yield Sample(f"adapter-{number}", "checkpoint", partial(_adapter, config=config))
    for name in ("..", "/etc", "../..", "a\0b", "x" * 5000):
        yield Sample(f"deepspeed-{name[:9]!r}", "checkpoint", partial(_latest, name=name))
