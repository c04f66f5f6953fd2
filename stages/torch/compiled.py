"""What AOTInductor is given and what it makes: an example, a compiler, limits, a package without paths."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from ...server import aot
from ..model import bundles, records
from ..model.bundles import Bundle

if TYPE_CHECKING:
    import torch

__all__ = ["compiler", "example", "limits", "plainly_named", "strip"]

_BATCH = 17
"""Of a smaller batch torch concludes, as it chooses a convolution, that there are never more than 15."""
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)
_CHECK = re.compile(r"static void check_input_(\d+)\(")
_METADATA = "wrapper_metadata.json"
_LARGEST = re.compile(r"_size\[(\d+)\] > (\d+)\)")


def example(bundle: Bundle) -> tuple[torch.Tensor, ...]:
    """Return inputs to export with: of the largest case, with a batch that is large enough."""
    case = max(bundle.cases, key=lambda c: sum(a.size for a in c.inputs.values()))
    sizes = {
        label: case.inputs[port.name].shape[axis]
        for port in bundle.inputs
        for axis, label in port.dynamic.items()
    }
    for label in {p.dynamic[p.batch] for p in bundle.inputs if p.batch is not None}:
        sizes[label] = max(sizes[label], bundle.axes[label].nearest(_BATCH))
    arrays = {port.name: bundles.tiled(case.inputs[port.name], port, sizes) for port in bundle.inputs}
    return bundles.tensors(arrays, bundle.input_names)


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Give a folder by a path without spaces and quotes, where AOTInductor's command lines break."""
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    places = [place for place in ("/dev/shm", "/tmp") if os.access(place, os.W_OK)]
    with TemporaryDirectory(dir=places[0] if places else None) as place:
        link = Path(place, "work")
        link.symlink_to(folder)
        yield link


def compiler(folder: Path) -> Path:
    """Write a g++ that writes no path of this machine into what it compiles."""
    import torch

    installed = Path(torch.__file__).parent.parent
    path = folder / "g++"
    maps = " ".join(f"'-ffile-prefix-map={place}=.'" for place in (installed, folder))
    path.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} {maps} "$@"\n')
    path.chmod(0o755)
    return path


def limits(package: Path, bundle: Bundle) -> dict[str, int]:
    """Return label → the largest size that a package takes, by its source text, of axes without a limit.

    Raises StageError where it is less than what was declared.
    """
    found: dict[str, int] = {}
    for index, place, size in _checks(package):
        if (label := bundle.inputs[index].dynamic.get(place)) is not None:
            found[label] = min(size, found.get(label, size))
    for label, size in found.items():
        most = bundle.axes[label].max
        if most is not None and size < most:
            said = f"AOTInductor compiled {label!r} for sizes up to {size}, but `dynamic` allows {most}"
            raise StageError(said, fix=f"set `max: {size}`, or use torch.export")
    return {label: size for label, size in found.items() if bundle.axes[label].max is None}


def _checks(package: Path) -> Iterator[tuple[int, int, int]]:
    """Yield input, axis and largest size of each check that a package makes."""
    with zipfile.ZipFile(package) as archive:
        name = next(n for n in archive.namelist() if n.endswith("wrapper.cpp"))
        text = archive.read(name).decode("utf-8", "replace")
    parts = _CHECK.split(text)[1:]
    for index, body in zip(parts[::2], parts[1::2], strict=True):
        for axis, size in _LARGEST.findall(body):
            yield int(index), int(axis), int(size)


def strip(package: Path, target: Path, described: Mapping[str, Any]) -> str:
    """Copy a package without its C++ source, which holds paths, and with a description that `serve` reads.

    Return the vector instructions that it was compiled for, in AOTInductor's words.
    """
    with zipfile.ZipFile(package) as members:
        name = next(n for n in members.namelist() if n.endswith(_METADATA))
        metadata: dict[str, Any] = json.loads(members.read(name))
    said = {**metadata, aot.KEY: json.dumps(described, sort_keys=True)}
    text = json.dumps(said, sort_keys=True).encode()
    with target.open("wb") as made:
        records.rewrite(
            package, made, leave_out=(".cpp",), changed=lambda n, old: text if n.endswith(_METADATA) else old
        )
    return str(metadata.get("AOTI_CPU_ISA", ""))
