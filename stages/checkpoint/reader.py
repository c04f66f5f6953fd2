"""Read any checkpoint a training loop leaves behind, without running what is inside it.

The format is told from the bytes, never from the file's name. Pickles are read by torch's
`weights_only` unpickler, widened by a short list of harmless types that training loops write all
the time: NumPy scalars and arrays, paths, dates, argparse namespaces, defaultdicts.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import StageError, first_line

from . import harmless

if TYPE_CHECKING:
    import torch

Format = Literal["torch", "legacy", "safetensors", "sharded", "torchscript", "pt2"]

_MAX_MEMBERS = 1_000_000
_MAX_NAME = 1000
_INDEX_BYTES = 1 << 20
_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
_NEWER_PICKLES = tuple(f"Unsupported operand {opcode}" for opcode in (140, 147, 148, 149, 150))
_LEGACY_PICKLES = 4
"""A legacy file begins with its magic number, protocol, system and content, each a pickle."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_UNSAFE = re.compile(r"GLOBAL ([\w.]+)")


def sniff(path: Path) -> Format:
    """Return the format of a checkpoint by its content. Raises StageError for anything else."""
    if path.is_dir():
        if any(path.glob("*.safetensors.index.json")):
            return "sharded"
        raise _no_shards(path)
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise StageError(
            "the checkpoint is empty (0 bytes)", fix="copy it again: the copy may have been interrupted"
        )
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(b"\x80"):
        return "legacy"
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return "safetensors"
    if head.lstrip().startswith(b"{") and b'"weight_map"' in path.read_bytes()[:_INDEX_BYTES]:
        raise StageError("the file is the index of a sharded checkpoint",
                         fix="use the folder that contains it and its shards")  # fmt: skip
    raise StageError("the file is not a checkpoint: neither torch.save's nor safetensors",
                     fix="use the file that your training loop wrote")  # fmt: skip


def _no_shards(folder: Path) -> StageError:
    said = f"{folder.name} is a folder without a *.safetensors.index.json"
    files = sorted(p.name for p in folder.iterdir() if p.suffix in _CHECKPOINTS)
    if any(folder.glob("*.bin.index.json")):
        return StageError(f"{said}: pickle shards are not supported", fix="save it as safetensors")
    return StageError(said, fix=f"use one of its files: {', '.join(files[:3])}" if files else
                      "use one of its files")  # fmt: skip


def _sniff_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        raise StageError("the checkpoint is truncated or damaged: the zip directory is missing",
                         fix="copy it again from where it was trained") from None  # fmt: skip
    names = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in names:
        return "torchscript"
    if "models/model.json" in names or any(n.endswith("model.json") for n in names):
        return "pt2"
    _check_members(members, path.stat().st_size)
    if "data.pkl" in names:
        return "torch"
    raise StageError("the file is a zip archive that torch.save did not write")


def _check_members(members: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Refuse what torch.save never writes: compression, encryption, names given twice."""
    names = [member.filename for member in members]
    if len(members) > _MAX_MEMBERS or len(set(names)) < len(names):
        raise StageError("the checkpoint's archive contains a record twice, or far too many records")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise StageError(f"the checkpoint's record {member.filename!r} is compressed or encrypted, "
                             "which torch.save never does")  # fmt: skip
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise StageError(f"the checkpoint's record {member.filename!r} has a path outside the archive")
    if sum(member.file_size for member in members) > file_bytes:
        raise StageError("the checkpoint's records are larger than the file")


def read(path: Path, *, trust: bool) -> Any:
    """Return what the checkpoint holds: a mapping, or with `trust` a whole module.

    Tensors are on the CPU, and mapped from the file where the format allows it. Raises
    StageError that names what is wrong, and what to do.
    """
    form = sniff(path)
    if form == "safetensors":
        return read_safetensors(path)
    if form == "sharded":
        return _read_sharded(path)
    if form == "torchscript":
        raise StageError("the file is a TorchScript program, not a checkpoint",
                         fix="use the training checkpoint that it was created from")  # fmt: skip
    if form == "pt2":
        raise StageError("the file is a torch.export program (.pt2), not a checkpoint",
                         fix="use the training checkpoint that it was created from")  # fmt: skip
    return _read_pickle(path, form, trust=trust)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, mapped from it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise StageError(f"the safetensors file is damaged: {error}") from None


def _read_sharded(folder: Path) -> dict[str, torch.Tensor]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        names = ", ".join(index.name for index in indices)
        raise StageError(f"the folder has several checkpoints: {names}", fix="keep one of them")
    index = indices[0]
    try:
        places = dict(json.loads(index.read_text("utf-8"))["weight_map"].items())
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise StageError(f"{index.name} is not an index of safetensors shards") from None
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in shards:
        if not isinstance(name, str) or "/" in name or not (folder / name).is_file():
            raise StageError(f"{index.name} lists the shard {name!r}, which is not in the folder",
                             fix="copy every shard")  # fmt: skip
        found[name] = read_safetensors(folder / name)
    for tensor, shard in places.items():
        if tensor not in found[shard]:
            raise StageError(f"the tensor {tensor!r} of {index.name} is not in its shard {shard}",
                             fix="copy the index and the shards of the same checkpoint")  # fmt: skip
    return {tensor: found[shard][tensor] for tensor, shard in places.items()}


def _read_pickle(path: Path, form: Format, *, trust: bool) -> Any:
    import pickle

    import torch

    _refuse_long_names(path, form)
    options: dict[str, Any] = {"map_location": "cpu", "mmap": form == "torch"}
    try:
        if trust:
            return torch.load(path, weights_only=False, **options)
        with torch.serialization.safe_globals(list(harmless.names())):
            return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        raise _refused(path, form, str(error)) from None
    except Exception as error:  # A damaged file takes torch anywhere.
        said = first_line(_ANSI.sub("", str(error))) or type(error).__name__
        raise StageError(f"the checkpoint is truncated or damaged: {said}",
                         fix="copy it again from where it was trained") from None  # fmt: skip


def _refuse_long_names(path: Path, form: Format) -> None:
    """Read the pickle's opcodes, without running them, for names that nobody gives to anything.

    torch looks through the error message of such a name by a pattern that takes hours on it.
    """
    damaged = (OSError, ValueError, EOFError, OverflowError, UnicodeDecodeError, zipfile.BadZipFile)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        contextlib.suppress(*damaged),  # What is damaged is told apart by who loads it.
    ):
        stream: Any = _pickle_of(path) if form == "torch" else mapped
        for _ in range(1 if form == "torch" else _LEGACY_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST") and len(str(argument)) > _MAX_NAME:
                    raise StageError(f"the checkpoint's pickle is rejected: it contains a name of "
                                     f"{len(str(argument)):,} characters; nothing was executed")  # fmt: skip


def _pickle_of(path: Path) -> io.BytesIO:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.partition("/")[2] == "data.pkl")
        return io.BytesIO(archive.read(name))


def _refused(path: Path, form: Format, said: str) -> StageError:
    """Name what the pickle wanted to import; nothing of it was executed."""
    import torch

    found = _UNSAFE.findall(_ANSI.sub("", said))
    if form == "torch":
        with contextlib.suppress(Exception):
            known = {name for _, name in harmless.names()}
            every = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            found = [name for name in every if name not in known] or found
    if not found:
        text = _ANSI.sub("", said).rpartition("WeightsUnpickler error:")[2].strip()
        line = text.partition("\n")[0]
        if line in _NEWER_PICKLES:
            said = "the checkpoint uses pickle protocol 4 or newer, which torch's safe loader doesn't support"
            return StageError(said, fix="save it with torch.save without pickle_protocol")
        if line.startswith("a NumPy"):
            said = f"the checkpoint contains {line}, which could run code; nothing was executed"
            return StageError(said, fix="save tensors and arrays of numbers only")
        return StageError(f"the checkpoint's pickle is rejected: {line[:200]}",
                          fix="check that torch.save wrote this file")  # fmt: skip
    names = ", ".join(list(dict.fromkeys(found))[:5])
    if any(name.startswith("torch.nn.") for name in found):
        fix = "save model.state_dict() instead; or, if you trust it, set `trust: true` on the stage"
        return StageError(f"the checkpoint is a pickled module, which contains code: {names}", fix=fix)
    return StageError(f"the checkpoint is a pickle that runs code: {names}; nothing was executed",
                      fix="save weights and plain values only")  # fmt: skip
