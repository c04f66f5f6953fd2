"""Packages of AOTInductor (.pt2): a model compiled for one kind of processor and one version of torch.

Read what one says of itself before its machine code is loaded, refuse what this machine can't run, and
have it check its inputs: without that it answers to numbers of another type or size with nonsense.
"""

from __future__ import annotations

import json
import os
import platform
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .problems import UnfitArtifact
from .reasons import first_line

__all__ = ["CHECK_INPUTS", "KEY", "Run", "described", "is_aot", "load"]

Run = Callable[[Sequence[Any]], list[Any]]
"""Takes tensors by position, in contiguous memory; returns the tensors that forward() returned, in order."""

CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"
"""The environment variable that a package reads once, the first time it runs."""
KEY = "deploy_runner"
"""Where in its metadata torch.aot describes a package's inputs, outputs, axes and torch, as JSON."""
_CODE = re.compile(r"(?:^|/)data/aotinductor/[^/]+/")
_METADATA = re.compile(r"(?:^|/)data/aotinductor/[^/]+/[^/]*wrapper_metadata\.json$")
_MOST_METADATA = 1 << 20
_FLAGS = {
    "AVX2": ("avx2", "fma", "f16c"),
    "AVX512": ("avx512f", "avx512dq", "avx512vl", "avx512bw", "fma"),
    "AVX512_VNNI": ("avx512_vnni",),
    "AMX_TILE": ("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16"),
    "ASIMD": ("asimd",),
}
"""Vector instructions in AOTInductor's words → the processor's flags in Linux's."""


def is_aot(file: Path) -> bool:
    """Say whether a file is a package of AOTInductor; nothing of it is run."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(_CODE.search(name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def described(file: Path) -> dict[str, Any]:
    """Return what torch.aot wrote into a package: inputs, outputs, axes, torch; nothing in a foreign one."""
    said = _metadata(file).get(KEY)
    try:
        found = json.loads(said) if isinstance(said, str) else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _metadata(file: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            member = next(m for m in archive.infolist() if _METADATA.search(m.filename))
            if member.file_size > _MOST_METADATA:
                raise ValueError
            found = json.loads(archive.read(member))
    except (StopIteration, zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return {}
    return found if isinstance(found, dict) else {}


def load(file: Path) -> Run:
    """Load a package's machine code, which then checks its inputs.

    Raises UnfitArtifact where it was compiled for another processor, system or version of torch. Running it
    raises RuntimeError for inputs that it wasn't compiled for.
    """
    import torch

    _refuse_foreign(_metadata(file), described(file).get("torch"), torch.__version__)
    os.environ[CHECK_INPUTS] = "1"
    try:
        # aoti_load_package looks for a compiler first, and for what it can compile for.
        loaded = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)
    except Exception as error:  # What a package lacks takes torch anywhere.
        raise UnfitArtifact(f"torch can't load {file.name}: {first_line(error)}") from None

    def run(tensors: Sequence[Any]) -> list[Any]:
        with torch.inference_mode():
            return list(loaded.boxed_run(list(tensors)))

    return run


def _refuse_foreign(metadata: Mapping[str, Any], made_by: Any, here: str) -> None:
    """Raise UnfitArtifact for what would be an illegal instruction, or worse, once it runs."""
    if isinstance(made_by, str) and made_by.split(".")[:2] != here.split(".")[:2]:
        raise UnfitArtifact(
            f"the model was compiled by torch {made_by}, here is torch {here}", fix=f"install torch {made_by}"
        )
    device = str(metadata.get("AOTI_DEVICE_KEY") or "cpu")
    if device != "cpu":
        raise UnfitArtifact(f"the model was compiled for {device}, it is run on the CPU here",
                            fix="compile it with torch.aot")  # fmt: skip
    machine = str(metadata.get("AOTI_MACHINE") or platform.machine())
    if machine != platform.machine():
        raise UnfitArtifact(f"the model was compiled for {machine}, this machine is {platform.machine()}",
                            fix="run torch.aot on such a machine")  # fmt: skip
    needed = [flag for word in str(metadata.get("AOTI_CPU_ISA", "")).upper().split() for flag in
              _FLAGS.get(word, ())]  # fmt: skip
    flags = _flags()
    lacking = sorted({flag for flag in needed if flags and flag not in flags})
    if lacking:
        raise UnfitArtifact(f"the model was compiled for a processor with {', '.join(lacking)}, which this "
                            "one lacks", fix="set `isa: avx2` on torch.aot, or run it there")  # fmt: skip


def _flags() -> set[str]:
    """Return the processor's flags, nothing where the system doesn't say."""
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return set()
    line = next((s for s in text.splitlines() if s.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())
