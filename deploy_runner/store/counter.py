"""The number of a run: one more than that of any run before it in this store, whatever the clock says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from .actions import Records, listdir
from .files import read_or_none, write_atomic
from .locks import Lock

__all__ = ["next_number", "number_of"]

_RUN = re.compile(r"(\d{6,15})-\w+-\w+")
_COUNTER = re.compile(rb"(\d{1,15})")


def next_number(home: Path, records: Records, is_sound: Callable[[str], bool]) -> int:
    """Return the number of a new run, which no run has had before. Raises StoreError.

    The counter is a file. Where that is lost, damaged, or older than the runs (it is not synced), the
    recorded runs say the number; `is_sound` says of a run's id whether its record is one of ours.
    """
    with Lock(f"{os.fspath(home)}/counter.lock"):
        body = records.seal.opened(read_or_none(home / "counter") or b"", "counter", "runs")
        known = _COUNTER.fullmatch(body or b"")
        number = 1 + _newest(home, int(known[1]) if known else 0, is_sound)
        sealed = records.seal.sealed(b"%d" % number, "counter", "runs")
        write_atomic(home / "counter", sealed, tmp=home / "tmp", durable=False)
        return number


def number_of(run: str) -> int:
    """Return the number in a run's id, 0 where it is no run's id."""
    found = _RUN.fullmatch(run)
    return int(found[1]) if found else 0


def _newest(home: Path, known: int, is_sound: Callable[[str], bool]) -> int:
    """Return the highest number of a recorded run, or `known` where none is above it."""
    above = [name for name in listdir(f"{os.fspath(home)}/runs") if number_of(name) > known]
    return next((number_of(n) for n in sorted(above, key=number_of, reverse=True) if is_sound(n)), known)
