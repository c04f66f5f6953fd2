"""Wait for what AWS makes: ask now and then, with growing pauses, and say how it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator

from deploy_runner.sdk import Context

_PAUSES_S = (0.1, 15.0)
_USUAL_S = 600.0
"""About how long an endpoint or a job takes, for the progress."""


def waiting(wait_s: float) -> Iterator[float]:
    """Yield the seconds that have passed each time that it is worth asking, until `wait_s` have."""
    begun, pause = time.monotonic(), _PAUSES_S[0]
    while (took := time.monotonic() - begun) <= wait_s:
        yield took
        time.sleep(pause)
        pause = min(_PAUSES_S[1], pause * 1.5)


def show(ctx: Context, name: str, status: str, took_s: float) -> None:
    """Show how long something has been waited for."""
    ctx.progress(min(0.99, took_s / _USUAL_S), f"{name}: {status}, {took_s:.0f} s")
