"""What a command takes: seconds, CPU, and what it has written."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Cost", "children", "cost"]

_BLOCK_BYTES = 512


class Cost(NamedTuple):
    """CPU and wall time, in seconds, and the bytes that were written to a disk, of all processes."""

    cpu_s: float
    wall_s: float
    written_bytes: int


def children() -> Cost:
    """Return what the children of this process that have ended have taken; their seconds are the clock's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter(), used.ru_oublock * _BLOCK_BYTES)


def cost(command: Sequence[str | Path], folder: Path, environ: Mapping[str, str] | None = None) -> Cost:
    """Run a command in a folder, with more of an environment. Raises SystemExit if it fails."""
    env = {**os.environ, **(environ or {})}
    before = children()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    after = children()
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr[-3000:]}")
    cpu_s, wall_s = after.cpu_s - before.cpu_s, after.wall_s - before.wall_s
    return Cost(cpu_s, wall_s, after.written_bytes - before.written_bytes)
