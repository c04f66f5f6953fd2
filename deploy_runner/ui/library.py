"""The runs of a store, read when they are needed and kept as long as their files are the same."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic_core import from_json

from ..engine.outline import OUTLINE, read_outline
from ..engine.runs import COUNTED, RunRecord
from ..errors import StoreError
from ..store.actions import ActionRecord, Records, listdir
from ..store.counter import number_of
from ..store.files import read_or_none
from .following import LOG, Follower, is_running
from .shapes import Head, Outline, Record, fitted

__all__ = ["OTHER_VERSION", "Library", "Phase", "Run", "pipeline_id"]

Phase = Literal["finished", "running", "stopped", "unreadable"]
"""stopped: without a record, and no process writes it any more, as after a kill or a loss of power."""

_Value = TypeVar("_Value")

OTHER_VERSION = "its record is of another version"
_WATCHED = 50
_KEPT_RECORDS = 64
_RECORD = "record.json"


@dataclass(frozen=True)
class Run:
    """One run in a list. `problem` says why it is unreadable; `counts` is state → number of stages."""

    id: str
    phase: Phase
    name: str = ""
    files: tuple[str, ...] = ()
    target: str = ""
    live: bool = False
    started: str = ""
    seconds: float = 0.0
    exit_code: int = 0
    counts: tuple[tuple[str, int], ...] = ()
    problem: str = ""

    @property
    def number(self) -> int:
        """The run's number."""
        return number_of(self.id)

    @property
    def pipeline(self) -> str:
        """A short id of the pipeline that it is a run of."""
        return pipeline_id(self.files)


class _Kept(NamedTuple):
    state: object
    value: Any


def pipeline_id(files: tuple[str, ...]) -> str:
    """Return a short id of a pipeline, for an address."""
    joined = "\0".join(files).encode("utf-8", "surrogatepass")
    return sha256(joined).hexdigest()[:12] if files else ""


class Library:
    """The runs of the store in `home`. Nothing is written: not even the key of a store that has none."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._records = Records(home, writable=False)
        self._lock = RLock()
        self._runs: dict[str, _Kept] = {}
        self._whole: OrderedDict[str, _Kept] = OrderedDict()
        self._outlines: OrderedDict[str, _Kept] = OrderedDict()
        self._followers: dict[str, Follower] = {}

    # Lists -----------------------------------------------------------------------------------

    def ids(self) -> list[str]:
        """Return the ids of all runs, the newest first."""
        names = [name for name in listdir(f"{self.home}/runs") if number_of(name)]
        return sorted(names, key=lambda name: (number_of(name), name), reverse=True)

    def runs(self, pipeline: str = "") -> Iterator[Run]:
        """Yield the runs of one pipeline or of all, the newest first."""
        for id_ in self.ids():
            run = self.run(id_)
            if run is not None and pipeline in ("", run.pipeline):
                yield run

    def newest(self) -> str:
        """Return what is another as soon as a run has begun or ended."""
        found = [f"{run.id} {run.phase}" for run in islice(self.runs(), _WATCHED)]
        return sha256("\n".join(found).encode()).hexdigest()[:16]

    def run(self, id_: str) -> Run | None:
        """Return a run, None where there is no such."""
        folder = self._folder(id_)
        if folder is None:
            return None
        record, log = _state(folder / _RECORD), _state(folder / LOG)
        with self._lock:
            kept = self._runs.get(id_)
            if record is None and log is not None:
                return self._unfinished(folder)
            if kept is None or kept.state != record:
                kept = self._runs[id_] = _Kept(record, self._look(folder))
            found: Run = kept.value
            return found

    def _folder(self, id_: str) -> Path | None:
        """Return the folder of a run; a link in its place is none."""
        folder = self.home / "runs" / id_
        real = number_of(id_) and folder.is_dir() and not folder.is_symlink()
        return folder if real else None

    def _look(self, folder: Path) -> Run:
        data, problem = self._data(folder)
        head = fitted(Head, data)
        if head is None or not _has_stages(data):
            return Run(folder.name, "unreadable", problem=problem or OTHER_VERSION)
        states = Counter(str(stage.get("state")) for stage in data["stages"].values())
        counts = tuple((state, states[state]) for state in COUNTED if states[state])
        return Run(
            folder.name, "finished", head.name, head.files, head.target, head.live, head.started,
            head.seconds, head.exit_code, counts,
        )  # fmt: skip

    def _unfinished(self, folder: Path) -> Run:
        phase: Phase = "running" if is_running(folder) else "stopped"
        outline = self.outline_of(folder.name)
        if outline is None:
            return Run(folder.name, phase)
        return Run(
            folder.name, phase, outline.name, outline.files, outline.target, outline.live, outline.started
        )

    # One run ---------------------------------------------------------------------------------

    def _data(self, folder: Path) -> tuple[Any, str]:
        """Return what a record says, or None and why not."""
        data = read_or_none(folder / _RECORD)
        if data is None:
            return None, "it has no record"
        try:
            body = self._records.seal.signed_body(data, "run", folder.name)
            value = from_json(body) if body is not None else None
        except StoreError as error:
            return None, f"its record can't be checked: {error.message}"
        except ValueError:
            value = None
        if not isinstance(value, dict) or value.get("id") != folder.name:
            return None, "its record is damaged, or was not written by this store"
        return value, ""

    def record(self, id_: str) -> Record | None:
        """Return the record of a run that has a sound one."""
        folder = self._folder(id_)
        if folder is None:
            return None
        return self._cached(
            self._whole, id_, _state(folder / _RECORD), lambda: fitted(Record, self._data(folder)[0])
        )

    def run_record(self, id_: str) -> RunRecord | None:
        """Return what `record` does, as the engine and its reports have it."""
        folder = self._folder(id_)
        if folder is None or self.record(id_) is None:
            return None
        return RunRecord(folder, self._data(folder)[0])

    def figures(self, id_: str) -> dict[str, dict[str, Any]]:
        """Return the figures of a finished run by stage, without a look at the rest of its record."""
        folder = self._folder(id_)
        data = self._data(folder)[0] if folder is not None else None
        stages = data["stages"] if data and _has_stages(data) else {}
        found = {name: stage.get("figures") for name, stage in stages.items()}
        return {name: figures for name, figures in found.items() if isinstance(figures, dict)}

    def outline_of(self, id_: str) -> Outline | None:
        """Return the outline that a run itself has written."""
        folder = self._folder(id_)
        if folder is None:
            return None

        def read() -> Outline | None:
            try:
                return fitted(Outline, read_outline(self._records, folder))
            except StoreError:
                return None

        return self._cached(self._outlines, id_, _state(folder / OUTLINE), read)

    def _cached(
        self, kept: OrderedDict[str, _Kept], id_: str, state: object, read: Callable[[], _Value]
    ) -> _Value:
        with self._lock:
            found = kept.get(id_)
            if found is None or found.state != state:
                found = kept[id_] = _Kept(state, read())
            kept.move_to_end(id_)
            while len(kept) > _KEPT_RECORDS:
                kept.popitem(last=False)
            value: _Value = found.value
            return value

    def follower(self, id_: str) -> Follower | None:
        """Return what reads the log of a run that has not ended."""
        folder = self._folder(id_)
        if folder is None:
            return None
        with self._lock:
            return self._followers.setdefault(id_, Follower(folder))

    def action(self, key: str) -> ActionRecord | None:
        """Return the record of an action, as long as the store has it."""
        if len(key) != 64 or not key.isalnum():
            return None
        try:
            return self._records.get(key)
        except StoreError:
            return None

    def holding(self, text: str, ids: list[str]) -> list[str]:
        """Return those of the runs whose record has a text somewhere, sound or not."""
        sought = text.encode()
        folders = ((id_, self._folder(id_)) for id_ in ids)
        return [id_ for id_, f in folders if f is not None and sought in (read_or_none(f / _RECORD) or b"")]


def _has_stages(data: Any) -> bool:
    stages = data.get("stages") if isinstance(data, dict) else None
    return isinstance(stages, dict) and all(isinstance(stage, dict) for stage in stages.values())


def _state(path: Path) -> object:
    """Return what is another after each change of a file, None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
