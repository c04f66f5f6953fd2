"""Find the model in what is to be served, refuse what is unsafe, and read what describes it."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import aot, archives
from .ports import DATATYPES, Arrays, Port, Ports, Sizes, with_batches
from .problems import UnfitArtifact
from .reasons import first_line

__all__ = ["Artifact", "Case", "find", "fingerprint"]

_ONNX, _TORCHSCRIPT, _AOT = "onnx", "torchscript", "aot"
_CODE = {
    _TORCHSCRIPT: "TorchScript, which contains code",
    _AOT: "a package of AOTInductor, which is machine code",
}
_NOT_DATA = ("model.json", "cases.npz", "bundle.json", "reference.npz")
_IO = "io"
"""The folder with what model.io made, beside a model."""


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs with the outputs that a model has to give for them."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model on disk: `digest` is the SHA-256 of its file, or of the list of its files' SHA-256.

    `inputs` and `outputs` may be empty for an ONNX model, which names its own. `of_largest` says how far
    an answer may be from a case's, as a share of the output's largest value. `joinable` is False where
    the answer for a sample would depend on the samples beside it. `io` is the folder that says how raw
    input becomes its inputs.
    """

    file: Path
    format: str
    digest: str
    inputs: Ports = field(default_factory=Ports)
    outputs: Ports = field(default_factory=Ports)
    cases: tuple[Case, ...] = ()
    of_largest: float = 1e-3
    joinable: bool = True
    io: Path | None = None

    @property
    def version(self) -> str:
        """Return the first 12 digits of the digest: the version in /v2."""
        return self.digest[:12]


def find(
    path: Path, scratch: Callable[[], Path], *, reference: Path | None, io: Path | None = None, trust: bool
) -> Artifact:
    """Return the model in a file, a folder or a model.tar.gz, which is unpacked into `scratch()`.

    Raises UnfitArtifact where there is none, or where it isn't safe.
    """
    try:
        return _find(path, scratch, reference, io, trust)
    except OSError as error:
        raise UnfitArtifact(f"{path} can't be read: {error.strerror or error}") from None


def _find(
    path: Path, scratch: Callable[[], Path], reference: Path | None, io: Path | None, trust: bool
) -> Artifact:
    if not path.exists():
        raise UnfitArtifact(f"{path} does not exist")
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        folder = scratch()
        try:
            archives.unpack(path, folder)
        except archives.BadArchive as error:
            raise UnfitArtifact(str(error)) from None
        path = folder
    described: Mapping[str, Any] = {}
    if path.is_dir():
        file, described = _in_folder(path)
        if reference is None and (path / "bundle.json").is_file():
            reference = path
    else:
        file = path
        if file.with_name("model.json").is_file() and file.suffix != ".onnx":
            described = _described(file.with_name("model.json"))
    format_ = str(described.get("format") or _format(file))
    if format_ not in (_ONNX, *_CODE):
        raise UnfitArtifact(f"the format {format_!r} is not supported", fix=f"{', '.join(_CODE)} or {_ONNX}")
    if format_ in _CODE and not trust:
        raise UnfitArtifact(f"{file.name} is {_CODE[format_]}", fix="if you trust it: --trust")
    bundle = _bundle(reference) if reference else {}
    if format_ == _AOT:  # What it was compiled for, whatever stands beside it.
        described = {**described, **aot.described(file)}
    given = described if "inputs" in described else bundle
    if format_ in _CODE and "inputs" not in given:
        raise UnfitArtifact(f"the input names of {file.name} are unknown",
                            fix="--reference BUNDLE of model.prepare, or a model.json beside it")  # fmt: skip
    cases_file = reference / "reference.npz" if reference else file.with_name("cases.npz")
    files = _files(file, format_)
    io = _io(file, io)
    return Artifact(
        file, format_, _digest(files, file.parent, io),
        *_with_batches(given, format_),
        _cases(cases_file) if cases_file.is_file() else (),
        of_largest=float(described.get("of_largest", 1e-3)),
        joinable=format_ != _ONNX or not _contains(file, b"DynamicQuantize"),
        io=io,
    )  # fmt: skip


def _format(file: Path) -> str:
    """Return a file's format by its name and content."""
    if file.suffix == ".onnx":
        return _ONNX
    if aot.is_aot(file):
        return _AOT
    if file.suffix == ".pt2":
        raise UnfitArtifact(f"{file.name} is not a package of AOTInductor", fix="compile it with torch.aot")
    if not zipfile.is_zipfile(file):
        raise UnfitArtifact(f"{file.name} is not a model that can be served", fix="serve ONNX or TorchScript")
    return _TORCHSCRIPT


def _in_folder(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return the model's file, and model.json; a container's context has both in `model/`."""
    for place in (folder, folder / "model"):
        if (place / "model.json").is_file():
            described = _described(place / "model.json")
            name = str(described.get("file", ""))
            if not name or Path(name).name != name or not (place / name).is_file():
                raise UnfitArtifact(f"model.json refers to the file {name!r}, which is not beside it")
            return place / name, described
        for name in ("model.onnx", "model.pt2", "model.pt"):
            if (place / name).is_file():
                return place / name, {}
    raise UnfitArtifact(f"{folder} contains neither model.onnx nor model.json",
                        fix="use an ONNX artifact, a model.tar.gz, or a container's context")  # fmt: skip


def _described(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UnfitArtifact(f"{path.name} is not JSON: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UnfitArtifact(f"{path.name} is not a JSON object")
    return value


def _bundle(folder: Path) -> Mapping[str, Any]:
    if not (folder / "bundle.json").is_file():
        raise UnfitArtifact(
            f"the reference {folder} is not a model bundle",
            fix="use the output `model` of model.prepare or model.onnx",
        )
    return _described(folder / "bundle.json")


def _with_batches(described: Mapping[str, Any], format_: str) -> tuple[Ports, Ports]:
    """Return inputs and outputs; none where an ONNX model knows its axes better than what describes it."""
    inputs, outputs = (_ports(described, part) for part in ("inputs", "outputs"))
    if format_ == _AOT:
        inputs = _limited(inputs, described)
    if all("batch" in given for given in described.get("inputs", [])):
        return inputs, outputs
    return (Ports(), Ports()) if format_ == _ONNX else with_batches(inputs, outputs)


def _ports(described: Mapping[str, Any], part: str) -> Ports:
    try:
        return Ports(_port(given) for given in described.get(part, []))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnfitArtifact(f"the {part} are not described by name, dtype and shape") from None


def _limited(ports: Ports, described: Mapping[str, Any]) -> Ports:
    """Return the ports with the sizes that their axes may have: compiled code looks at few of them itself."""
    try:
        known = {a["label"]: Sizes(a["multiple_of"], a["min"], a["max"]) for a in described.get("axes", [])}
    except (KeyError, TypeError):
        raise UnfitArtifact("the axes are not described by label, multiple_of, min and max") from None
    return Ports(replace(p, sizes=tuple(known.get(label, Sizes()) for label in p.axes)) for p in ports)


def _port(given: Mapping[str, Any]) -> Port:
    dynamic = {int(axis): str(name) for axis, name in (given.get("dynamic") or {}).items()}
    shape = tuple(-1 if axis in dynamic else int(size) for axis, size in enumerate(given["shape"]))
    if given["dtype"] not in DATATYPES:
        raise UnfitArtifact(f"{given['name']!r} has the dtype {given['dtype']!r}, which is not supported")
    axes = tuple(dynamic.get(i, "") for i in range(len(shape)))
    return Port(given["name"], given["dtype"], shape, axes, given.get("batch"))


def _files(file: Path, format_: str) -> list[Path]:
    """Return the files that make up the model; refuse links where an ONNX model has external data.

    onnxruntime refuses data outside of the model's folder and behind symbolic links itself, but reads
    hard links, through which a model could publish somebody else's file.
    """
    if format_ != _ONNX or not _contains(file, b"location"):
        return [file]
    beside = sorted(file.parent.rglob("*"))
    for path in beside:
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode) or (stat.S_ISREG(state.st_mode) and state.st_nlink > 1):
            raise UnfitArtifact(f"{path.name} is a link; a model with external data must not contain links",
                                fix="replace it by a copy")  # fmt: skip
    io = file.parent / _IO
    return [p for p in beside if p.is_file() and p.name not in _NOT_DATA and io not in p.parents]


def _io(file: Path, given: Path | None) -> Path | None:
    """Return the folder with io.json: the one that was given, else the one beside the model."""
    if given is not None and not (given / "io.json").is_file():
        raise UnfitArtifact(f"{given} has no io.json", fix="use the output `io` of model.io")
    beside = file.with_name(_IO)
    return given or (beside if (beside / "io.json").is_file() else None)


def _contains(file: Path, text: bytes) -> bool:
    """Say whether a file holds these bytes: names in protobuf messages are there as they are."""
    if file.stat().st_size == 0:
        raise UnfitArtifact(f"{file.name} is empty")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        return pages.find(text) >= 0


def _digest(files: list[Path], folder: Path, io: Path | None) -> str:
    places = {str(path.relative_to(folder)): path for path in files}
    if io is not None:
        declared = sorted(path for path in io.rglob("*") if path.is_file())
        places |= {f"{_IO}/{path.relative_to(io)}": path for path in declared}
    digests = {}
    for name, path in places.items():
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{d}  {n}\n" for n, d in sorted(digests.items())).encode()).hexdigest()


def _cases(path: Path) -> tuple[Case, ...]:
    """Read `CASE/in/NAME` and `CASE/out/NAME`, as model.prepare writes them."""
    grouped: dict[str, Case] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                case, part, name = key.split("/", 2)
                found = grouped.setdefault(case, Case({}, {}))
                (found.inputs if part == "in" else found.outputs)[name] = arrays[key]
    except (ValueError, OSError, EOFError) as error:
        raise UnfitArtifact(f"{path.name} can't be read: {first_line(error)}") from None
    return tuple(grouped.values())


def fingerprint(path: Path) -> tuple[object, ...]:
    """Return what changes when another artifact is put at `path`: where links lead, inodes and times."""
    real = Path(os.path.realpath(path))
    found = [real] if not real.is_dir() else [real, *sorted(real.rglob("*"))]
    state: list[object] = [str(real)]
    for file in found:
        try:
            s = file.stat()
        except OSError:
            continue
        state.append((file.name, s.st_ino, s.st_size, s.st_mtime_ns))
    return tuple(state)
