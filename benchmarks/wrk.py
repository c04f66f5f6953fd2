"""The load: wrk, one thread in C, which costs a request about 20 µs of CPU whatever server it asks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .costs import children
from .environments import HERE

__all__ = ["Load", "press", "require_wrk"]

SCRIPT = HERE / "predict.lua"


@dataclass(frozen=True, slots=True)
class Load:
    """What a time of load showed. `failed` counts refused, broken, late and non-2xx answers alike."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failed: int
    own_cpu_s: float

    @property
    def per_second(self) -> float:
        """Return the throughput, in requests a second."""
        return self.requests / self.seconds


def require_wrk() -> None:
    """Stop with one sentence where wrk is missing."""
    if shutil.which("wrk") is None:
        raise SystemExit("the load comes from wrk, which is missing: apt-get install wrk")


def press(url: str, body: Path, *, seconds: int, clients: int) -> Load:
    """Post a file's bytes again and again from `clients` keep-alive connections."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(SCRIPT), url]
    before = children()
    done = subprocess.run(command, env=os.environ | {"BODY": str(body)}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"wrk failed:\n{done.stdout}\n{done.stderr}")
    return Load(**json.loads(done.stdout.splitlines()[-1]), own_cpu_s=children().cpu_s - before.cpu_s)
