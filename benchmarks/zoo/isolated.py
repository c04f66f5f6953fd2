"""Run a function in a forked process of its own, with limits of time and memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["apart", "peak_bytes", "reason"]

_MEMORY_BYTES = 24 << 30


def apart(work: Callable[[], dict[str, Any]], file: Path, seconds: float) -> dict[str, Any]:
    """Return what a function returns; `failed` says why it returned nothing."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(work, file))
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return {"failed": f"it takes more than {seconds:.0f} s"}
    if not file.exists():
        return {"failed": f"the process ended with {process.exitcode}"}
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _child(work: Callable[[], dict[str, Any]], file: Path) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        found = work()
    except Exception as error:
        found = {"failed": reason(error)}
    file.write_text(json.dumps(found))


def reason(error: BaseException) -> str:
    """Return the innermost cause in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def peak_bytes(pid: int | str = "self") -> int:
    """Return the largest memory that a process has had so far, 0 for one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) << 10 if found else 0
