"""The GPUs of this machine: how many a run may use, and what a worker needs to reach them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from ...errors import StageError, counted
from ...types import Resources

__all__ = ["VISIBLE", "devices", "require", "usable"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What tells CUDA which GPUs a process may use: numbers or UUIDs with commas between them."""
_DRIVER = "/proc/driver/nvidia/gpus"
"""A folder for each GPU. Reading it takes microseconds; NVML or torch would take up to a second."""
_DEVICES = "/dev"


def usable(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the GPUs that a run may use, as `CUDA_VISIBLE_DEVICES` names them.

    They are those that the variable names, up to one that is invalid, as CUDA does; without it all of
    the machine.
    """
    named = environ.get(VISIBLE)
    if named is None:
        with suppress(OSError):
            return tuple(str(index) for index, _ in enumerate(os.listdir(_DRIVER)))
        return ()
    found: list[str] = []
    for name in map(str.strip, named.split(",")):
        if not name or name.startswith("-"):
            break
        found.append(name)
    return tuple(found)


def devices() -> list[str]:
    """Return the device files of NVIDIA's driver."""
    return sorted(f"{_DEVICES}/{name}" for name in os.listdir(_DEVICES) if name.startswith("nvidia"))


def require(wanted: Resources, environ: Mapping[str, str]) -> None:
    """Raise StageError for GPUs and other resources that this machine doesn't have."""
    if not (wanted.gpu or wanted.custom):
        return
    fix = "run with `--executor ray` on a cluster that has it"
    for name in wanted.custom:
        raise StageError(f"it needs the resource {name!r}, which a local run doesn't know", fix=fix)
    count = len(usable(environ))
    if wanted.gpu > count:
        lack = f"{counted(wanted.gpu, 'GPU')}, and this machine has {count or 'none'}"
        raise StageError(f"it needs {lack}{f' in {VISIBLE}' if VISIBLE in environ else ''}", fix=fix)
