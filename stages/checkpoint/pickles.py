"""Read what torch.save wrote by torch's `weights_only` unpickler; with `trust` by Python's own.

It is widened by a short list of harmless types that training loops write all the time (NumPy scalars and
arrays, paths, dates, argparse namespaces, …), and by empty objects for classes that are not imported.
"""

from __future__ import annotations

import io
import mmap
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import StageError, first_line

from ..model import state_dicts
from . import archives, harmless, opcodes

Container = Literal["torch", "legacy"]
"""Zip, since torch 1.6, or pickles one after the other."""

_LEGACY_PICKLES = 4
"""A legacy file begins with its magic number, protocol, system and content, each a pickle."""
_NEWER_PICKLES = tuple(f"Unsupported operand {opcode}" for opcode in (140, 147, 148, 149, 150))
_MODULE = "Only persistent_load of storage is allowed"
"""What torch says of the sources of a module, which the old format contains."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_UNSAFE = re.compile(r"GLOBAL ([\w.]+)")
_MOST_NAMES = 5
_UNREADABLE = {
    "torchao.": ("weights that torchao has quantized",
                 "save the float model's state_dict, and quantize it here, e.g. with onnx.quantize_static"),
    "torch.distributed.tensor.": ("one process's shards of the weights (DTensor)",
                                  "save with torch.distributed.checkpoint, or get_model_state_dict with "
                                  "StateDictOptions(full_state_dict=True)"),
    "torch.distributed._shard.": ("one process's shards of the weights (ShardedTensor)",
                                  "save with torch.distributed.checkpoint, or with FSDP's FULL_STATE_DICT"),
}  # fmt: skip
"""The beginning of a class's name → what a checkpoint with it holds, and what to do."""


def define_in_main(code: str, value: Any) -> None:
    """Put a class where training scripts pickle theirs: `__main__.NAME`."""
    setattr(sys.modules["__main__"], code.rpartition(":")[2], value)


def read(path: Path, container: Container, *, trust: bool) -> Any:
    """Return what a file holds, its tensors on the CPU and mapped from it where it is a zip.

    Raises StageError that names what is wrong, and what to do.
    """
    if container == "legacy":
        return _trusted(path, mapped=False) if trust else _guarded(path, _seen_in(path), mapped=False)
    with archives.stored(path) as found:
        if trust:
            return _trusted(found.path, mapped=True)
        return _guarded(found.path, opcodes.scan(found.pickle, 1), mapped=True)


def read_bytes(data: bytes) -> Any:
    """Return what the bytes hold that torch.save wrote to a buffer; never with trust."""
    file = io.BytesIO(data)
    if not data.startswith(b"PK"):
        return _guarded(file, opcodes.scan(io.BytesIO(data), _LEGACY_PICKLES), mapped=False)
    archives.check(file)
    with zipfile.ZipFile(file) as archive:
        seen = opcodes.scan(archives.pickle_of(archive), 1)
    file.seek(0)
    return _guarded(file, seen, mapped=False)


def _trusted(path: Path, *, mapped: bool) -> Any:
    import torch

    try:
        return torch.load(path, weights_only=False, map_location="cpu", mmap=mapped)
    except (ImportError, AttributeError) as error:
        raise StageError(f"the checkpoint needs code that isn't here: {first_line(error)}",
                         fix="install its package, or name the class with `code`") from None  # fmt: skip
    except Exception as error:  # A damaged file takes torch anywhere.
        raise _damaged(error) from None


def _guarded(place: Path | io.BytesIO, seen: opcodes.Seen, *, mapped: bool) -> Any:
    """Load with nothing imported but what is harmless. Raises StageError for all else."""
    import pickle

    import torch

    known = {name for _, name in harmless.names()} | set(_known_to_torch())
    unknown = seen.names - known
    _refuse_unreadable(unknown)
    stand_ins = harmless.stand_ins(seen, known)
    try:
        with torch.serialization.safe_globals([*harmless.names(), *stand_ins]):
            content = torch.load(place, weights_only=True, map_location="cpu", mmap=mapped)
    except pickle.UnpicklingError as error:
        raise _refused(unknown, {name for _, name in stand_ins}, str(error)) from None
    except Exception as error:  # A damaged file takes torch anywhere.
        raise _damaged(error) from None
    if _is_module(content):
        raise _refused_module(unknown)
    return content


def _known_to_torch() -> Iterator[str]:
    from torch import _weights_only_unpickler

    return iter(_weights_only_unpickler._get_allowed_globals())


def _is_module(content: Any) -> bool:
    """Say whether the weights can only be inside an object whose class was not imported."""
    if isinstance(content, harmless.Unread):
        return True
    inside = content.values() if isinstance(content, Mapping) else ()
    return any(isinstance(v, harmless.Unread) for v in inside) and not (
        state_dicts.is_state_dict(content) or state_dicts.state_dicts(content)
    )


def _seen_in(path: Path) -> opcodes.Seen:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        stream: Any = mapped
        return opcodes.scan(stream, _LEGACY_PICKLES)


def _damaged(error: Exception) -> StageError:
    said = first_line(_ANSI.sub("", str(error))) or type(error).__name__
    return StageError(f"the checkpoint is truncated or damaged: {said}",
                      fix="copy it again from where it was trained")  # fmt: skip


def _refuse_unreadable(unknown: set[str]) -> None:
    for start, (what, fix) in _UNREADABLE.items():
        found = sorted(name for name in unknown if name.startswith(start))
        if found:
            raise StageError(f"the checkpoint contains {what}: {_some(found)}", fix=fix)


def _refused(unknown: set[str], stand_ins: set[str], said: str) -> StageError:
    """Say what of a pickle was refused; nothing of it was executed."""
    said = _ANSI.sub("", said)
    line = said.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    if line in _NEWER_PICKLES:
        said = "the checkpoint uses pickle protocol 4 or newer, which torch's safe loader doesn't support"
        return StageError(said, fix="save it with torch.save without pickle_protocol")
    if line.startswith("a NumPy"):
        said = f"the checkpoint contains {line}, which could run code; nothing was executed"
        return StageError(said, fix="save tensors and arrays of numbers only")
    if line.startswith(_MODULE):
        return _refused_module(unknown)
    called = line.removeprefix("a call of ")
    found = [called] if called in stand_ins else sorted(unknown - stand_ins) or _UNSAFE.findall(said)
    if not found:
        return StageError(f"the checkpoint's pickle is rejected: {line[:200]}",
                          fix="check that torch.save wrote this file")  # fmt: skip
    return StageError(f"the checkpoint is a pickle that runs code: {_some(found)}; nothing was executed",
                      fix="save weights and plain values only")  # fmt: skip


def _refused_module(unknown: set[str]) -> StageError:
    """Name the classes of a pickled module, those that torch doesn't have first."""
    found = sorted(unknown, key=lambda name: (name.startswith("torch."), name))
    return StageError(
        f"the checkpoint is a pickled module, which contains code: {_some(found)}",
        fix="save model.state_dict() instead; or, if you trust it, set `trust: true` on the stage",
    )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + rest
