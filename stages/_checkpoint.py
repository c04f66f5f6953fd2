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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import StageError

if TYPE_CHECKING:
    import torch

Format = Literal["torch", "legacy", "safetensors", "sharded", "torchscript", "pt2"]

_MAX_MEMBERS = 1_000_000
_MAX_NAME = 1000
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
        raise StageError(f"{path.name} is a folder without a *.safetensors.index.json",
                         fix="name the checkpoint's file")  # fmt: skip
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise StageError("the checkpoint is empty (0 bytes)", fix="was its copy interrupted?")
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(b"\x80"):
        return "legacy"
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return "safetensors"
    raise StageError("the file is not a checkpoint: neither torch.save's nor safetensors",
                     fix="name the file that your training loop wrote")  # fmt: skip


def _sniff_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        raise StageError("the checkpoint is truncated or damaged: its zip directory is missing",
                         fix="copy it again from where it was trained") from None  # fmt: skip
    names = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in names:
        return "torchscript"
    if "models/model.json" in names or any(n.endswith("model.json") for n in names):
        return "pt2"
    _check_members(members, path.stat().st_size)
    if "data.pkl" in names:
        return "torch"
    raise StageError("the file is a zip archive, but not one that torch.save wrote")


def _check_members(members: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Refuse what torch.save never writes: compression, encryption, names given twice."""
    names = [member.filename for member in members]
    if len(members) > _MAX_MEMBERS or len(set(names)) < len(names):
        raise StageError("the checkpoint's archive names a record twice, or far too many")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 0x1:
            raise StageError(f"the checkpoint's record {member.filename!r} is compressed or encrypted, "
                             "which torch.save never does")  # fmt: skip
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise StageError(f"the checkpoint's record {member.filename!r} leaves the archive")
    if sum(member.file_size for member in members) > file_bytes:
        raise StageError("the checkpoint's records claim to be larger than the file")


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
                         fix="name the training checkpoint it was made from")  # fmt: skip
    if form == "pt2":
        raise StageError("the file is a torch.export program (.pt2), not a checkpoint",
                         fix="name the training checkpoint it was made from")  # fmt: skip
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
    index = sorted(folder.glob("*.safetensors.index.json"))[0]
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise StageError(f"{index.name} is not an index of safetensors shards") from None
    weights: dict[str, torch.Tensor] = {}
    for name in shards:
        if not isinstance(name, str) or "/" in name or not (folder / name).is_file():
            raise StageError(f"{index.name} names the shard {name!r}, which is not in the folder")
        weights |= read_safetensors(folder / name)
    return weights


def _read_pickle(path: Path, form: Format, *, trust: bool) -> Any:
    import pickle

    import torch

    _refuse_long_names(path, form)
    options: dict[str, Any] = {"map_location": "cpu", "mmap": form == "torch"}
    try:
        if trust:
            return torch.load(path, weights_only=False, **options)
        with torch.serialization.safe_globals(list(_harmless_names())):
            return torch.load(path, weights_only=True, **options)
    except pickle.UnpicklingError as error:
        raise _refused(path, form, str(error)) from None
    except Exception as error:  # A damaged file takes torch anywhere.
        said = _ANSI.sub("", str(error)).strip().partition("\n")[0] or type(error).__name__
        raise StageError(f"the checkpoint can't be read, it is truncated or damaged: {said}",
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
        stream = _pickle_of(path) if form == "torch" else mapped
        for _ in range(1 if form == "torch" else _LEGACY_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST") and len(argument) > _MAX_NAME:
                    raise StageError(f"the checkpoint's pickle is refused: it names something of "
                                     f"{len(argument):,} letters; nothing was executed")  # fmt: skip


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
            known = {name for _, name in _harmless_names()}
            every = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            found = [name for name in every if name not in known] or found
    if not found:
        text = _ANSI.sub("", said).rpartition("WeightsUnpickler error:")[2].strip()
        line = text.partition("\n")[0]
        if line in _NEWER_PICKLES:
            said = "the checkpoint is pickled by protocol 4 or newer, which torch's safe reader doesn't know"
            return StageError(said, fix="save it by torch.save without pickle_protocol")
        return StageError(f"the checkpoint's pickle is refused: {line[:200]}",
                          fix="is this file what torch.save wrote?")  # fmt: skip
    names = ", ".join(list(dict.fromkeys(found))[:5])
    if any(name.startswith("torch.nn.") for name in found):
        fix = "save model.state_dict() instead; or, if you trust it, set `trust: true` on the stage"
        return StageError(f"the checkpoint is a whole pickled module, with code in it: {names}", fix=fix)
    return StageError(f"the checkpoint is a pickle that runs code: {names}; nothing was executed",
                      fix="save weights and plain values only")  # fmt: skip


def _plain_mapping(*factory: Any) -> dict[Any, Any]:
    return {}


def _harmless_names() -> Iterator[tuple[Any, str]]:
    """Yield (type, name in the pickle) of what is let through beyond torch's own list.

    None of these calls anything that the file chooses: they hold values.
    """
    import _codecs
    import argparse
    import datetime
    import pathlib

    import numpy as np
    from numpy._core import multiarray

    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        yield multiarray.scalar, f"{module}.scalar"  # type: ignore[attr-defined]
        yield multiarray._reconstruct, f"{module}._reconstruct"  # type: ignore[attr-defined]
    yield np.ndarray, "numpy.ndarray"
    yield np.dtype, "numpy.dtype"
    for name in sorted(vars(np.dtypes)):
        kind = getattr(np.dtypes, name)
        if isinstance(kind, type) and name not in ("ObjectDType",):
            yield kind, f"numpy.dtypes.{name}"
    yield _codecs.encode, "_codecs.encode"
    for kind in (
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        pathlib.WindowsPath,
        pathlib.PureWindowsPath,
    ):
        yield kind, f"pathlib.{kind.__name__}"
    for kind in (
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        datetime.timezone,
    ):
        yield kind, f"datetime.{kind.__name__}"
    yield argparse.Namespace, "argparse.Namespace"
    # torch fills plain mappings only; the factory of a defaultdict is not needed to read it.
    yield _plain_mapping, "collections.defaultdict"
    for builtin in (int, float, list, dict, str, bool):
        yield builtin, f"builtins.{builtin.__name__}"


_USUAL_KEYS = ("model_state_dict", "state_dict", "model", "module", "net", "network", "weights",
               "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema")  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.")
_AVERAGED = "n_averaged"
"""The counter of torch.optim.swa_utils.AveragedModel, which wraps the model as `module`."""


def find_state_dict(content: Any, key: str | None) -> tuple[dict[str, Any], str]:
    """Return the state_dict inside a checkpoint, and the key it was under ("" if bare).

    Raises StageError that lists what is there instead.
    """
    import torch

    if isinstance(content, torch.nn.Module):
        return dict(content.state_dict()), ""
    if not isinstance(content, Mapping):
        raise StageError(f"the checkpoint holds a {type(content).__name__}, not a mapping")
    if key is not None:
        found: Any = content
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise StageError(f"the checkpoint has no key {key!r}, it has {_keys(content)}")
            found = found[part]
        if isinstance(found, torch.nn.Module):
            return dict(found.state_dict()), key
        if not _is_state_dict(found):
            raise StageError(f"{key!r} of the checkpoint is not a state_dict of tensors")
        return dict(found), key
    if _is_state_dict(content):
        return dict(content), ""
    for name in _USUAL_KEYS:
        value = content.get(name)
        if isinstance(value, torch.nn.Module):
            return dict(value.state_dict()), name
        if _is_state_dict(value):
            return dict(value), name
    raise StageError(f"the checkpoint has no state_dict under a usual key, it has {_keys(content)}",
                     fix="name it: with: {key: …}")  # fmt: skip


def _is_state_dict(value: Any) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and any(isinstance(v, torch.Tensor) for v in value.values())
        and all(isinstance(k, str) for k in value)
        and not any(isinstance(v, Mapping) for v in value.values())
    )


def _keys(content: Mapping[Any, Any]) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def strip_wrappers(weights: dict[str, Any], prefix: str | None) -> tuple[dict[str, Any], str]:
    """Return the weights without the prefixes of DDP and torch.compile, or `prefix`."""
    stripped = ""
    if prefix:
        inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        if not inside:
            raise StageError(f"no key of the state_dict begins with {prefix!r}")
        return inside, prefix
    if _AVERAGED in weights and all(k.startswith("module.") for k in weights if k != _AVERAGED):
        weights = {name: value for name, value in weights.items() if name != _AVERAGED}
    while found := next((w for w in _WRAPPERS if all(k.startswith(w) for k in weights)), None):
        weights = {name.removeprefix(found): value for name, value in weights.items()}
        stripped += found
    return weights, stripped


def write_safetensors(path: Path, weights: Mapping[str, Any]) -> dict[str, str]:
    """Write weights with sorted metadata; tied tensors are written once.

    Returns alias → name of the tied ones, which is in the file's metadata too. Raises StageError
    for what a safetensors file can't hold.
    """
    import torch
    from safetensors.torch import save_file

    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name in sorted(weights):
        tensor = weights[name]
        if not isinstance(tensor, torch.Tensor):
            raise StageError(f"{name!r} of the state_dict is a {type(tensor).__name__}, not a tensor",
                             fix="quantize after the export instead")  # fmt: skip
        if tensor.is_quantized or tensor.layout != torch.strided:
            raise StageError(f"{name!r} is a quantized or sparse tensor, which safetensors can't hold",
                             fix="start from the float checkpoint")  # fmt: skip
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in seen:
            tied[name] = seen[place]
            continue
        seen[place] = name
        kept[name] = tensor.detach().contiguous()
    metadata = {"format": "pt"} | ({"tied": json.dumps(tied, sort_keys=True)} if tied else {})
    save_file(_unshared(kept), path, dict(sorted(metadata.items())))
    path.chmod(0o644)
    return tied


def _unshared(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clone tensors that overlap in one storage without being equal: views of one buffer."""
    owners: dict[int, int] = {}
    for tensor in weights.values():
        pointer = tensor.untyped_storage().data_ptr()
        owners[pointer] = owners.get(pointer, 0) + 1
    return {
        name: tensor.clone()
        if owners[tensor.untyped_storage().data_ptr()] > 1 and _is_partial(tensor)
        else tensor
        for name, tensor in weights.items()
    }


def _is_partial(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
