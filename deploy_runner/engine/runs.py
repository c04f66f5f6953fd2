"""Events → one run record: what ran, what it made, the figures, as one JSON file.

A run's folder is `runs/ID/`: `record.json` (this module; its last member is the HMAC of the rest),
`outline.json` (the stages and what each needs, for those who look on), `log.jsonl` (every event as it
happened; locked until the run has ended), `logs/STAGE.log` (what the workers printed), `report.html`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from ..errors import UsageError
from ..pipeline.identity import Files, describe, is_there
from ..store.actions import Records, listdir
from ..store.counter import next_number, number_of
from ..store.files import read_or_none, store_error, write_atomic, writing
from ..types import Artifact, Event, Graph, Json, Kind, StageNode, StageResult

__all__ = [
    "COUNTED",
    "KEPT_RUNS",
    "Recorder",
    "RunRecord",
    "kept_runs",
    "new_run_id",
    "pin_run",
    "pinned_runs",
    "read_record",
    "recorded_runs",
    "run_before",
]

_PINNED = "pinned"

KEPT_RUNS = 10
"""How many runs of each pipeline a collection keeps by default."""

_NOTHING: Mapping[str, str] = {}
_SOURCE = {"ref": "GITHUB_REF", "commit": "GITHUB_SHA"}
"""What a record has of where its pipeline came from, and the variable that says it on GitHub."""

COUNTED = ("ran", "hit", "healed", "converged", "failed", "skipped", "interrupted")


class RunRecord(NamedTuple):
    """One finished run. `data` is the content of `record.json`."""

    folder: Path
    data: Mapping[str, Json]

    @property
    def id(self) -> str:
        """The run's id, which begins with its number."""
        return str(self.data["id"])

    @property
    def number(self) -> int:
        """The run's number; the runs of a store are ordered by it."""
        return number_of(self.id)

    @property
    def files(self) -> Files:
        """The files that identify the pipeline: its YAML and its overlays."""
        files = self.data["files"]
        assert isinstance(files, list)
        return tuple(map(str, files))

    @property
    def stages(self) -> dict[str, dict[str, Json]]:
        """The entries of the stages by stage id."""
        stages = self.data["stages"]
        assert isinstance(stages, dict)
        return stages  # type: ignore[return-value]

    def artifacts(self, stage: str) -> dict[str, Artifact]:
        """Return a stage's artifacts by output name, whether it ran or was a cache hit."""
        entries = self.stages[stage].get("artifacts")
        return {n: _artifact(e) for n, e in entries.items()} if isinstance(entries, dict) else {}

    @property
    def exit_code(self) -> int:
        """The exit code of the run."""
        code = self.data.get("exit_code", 0)
        return code if isinstance(code, int) else 1

    @property
    def unconfined(self) -> list[str]:
        """The accesses that the sandbox of this run's stages did not prevent, in words."""
        lacks = self.data.get("unconfined", [])
        return [str(lack) for lack in lacks] if isinstance(lacks, list) else []

    def summary(self) -> dict[str, Json]:
        """Return what `run --json` prints: the number of stages in each state, and their entries."""
        return {"run": self.id, **{k: self.data[k] for k in COUNTED}, "stages": self.data["stages"]}


def new_run_id(home: Path, now_s: float) -> str:
    """Return a new id: the run's number, by which runs are ordered; UTC time, to read; a random part."""
    records = Records(home)
    number = next_number(home, records, lambda name: _read(home / "runs" / name, records) is not None)
    return f"{number:06d}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s))}-{os.urandom(2).hex()}"


class Recorder:
    """Collects the events of one run and writes its record at the end."""

    def __init__(
        self,
        home: Path,
        graph: Graph,
        files: Files,
        *,
        now_s: float,
        targets: Sequence[str] = (),
        environ: Mapping[str, str] = _NOTHING,
    ) -> None:
        self._home = home
        self._source = {name: environ[known] for name, known in _SOURCE.items() if environ.get(known)}
        self._targets = targets
        self._hits: list[str] = []
        self.folder = home / "runs" / new_run_id(home, now_s)
        self._files = files
        self._graph = graph
        self._started_s = now_s
        self._log: TextIO | None = None
        self._is_locked = False
        self._starts_s: dict[str, float] = {}
        self._finished = False

    def __call__(self, event: Event) -> None:
        """Append the event to `log.jsonl`; hits are named before what happens next, if anything does."""
        if event.result is not None and event.result.state == "hit":
            self._hits.append(event.stage)
            return
        if event.kind in ("run-started", "run-finished", "stage-progress") or self._finished:
            return
        if event.kind == "stage-started":
            self._starts_s[event.stage] = event.time_s - self._started_s
        line = {"time": event.time_s, "kind": event.kind, "stage": event.stage, "text": event.text}
        if event.result is not None:
            line |= {"state": event.result.state, "reason": event.result.reason}
            line |= {"error": event.result.error, "seconds": round(event.result.seconds, 6)}
        lines = [line]
        if self._hits:
            hits, self._hits = self._hits, []
            lines.insert(0, {"time": event.time_s, "kind": "stages-hit", "stages": hits})
        with writing(self.folder / "log.jsonl"):
            log = self._open_log()
            log.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            log.flush()
        self._is_locked = self._is_locked or _locked(log)

    def _open_log(self) -> TextIO:
        if self._log is None:
            from .outline import outline_of, write_outline  # A run with nothing to do has none.

            outline = outline_of(self._graph, self._targets, self._files, _iso(self._started_s))
            write_outline(self._home, self.folder, outline)
            self._log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        return self._log

    def finish(self, results: Mapping[str, StageResult], *, now_s: float, exit_code: int) -> RunRecord:
        """Write `record.json` and return the record; no event is logged after that."""
        self._finished = True
        try:
            return self._record(results, now_s, exit_code)
        finally:  # Only now, so that nobody finds a log that is free and no record beside it.
            if self._log is not None:
                with suppress(OSError):  # What is left in its buffer has been said to be unwritten.
                    self._log.close()

    def _record(self, results: Mapping[str, StageResult], now_s: float, exit_code: int) -> RunRecord:
        counts = dict.fromkeys(COUNTED, 0)
        for result in results.values():
            counts[result.state] += 1
        data: dict[str, Json] = {
            "schema": 1,
            "id": self.folder.name,
            "name": self._graph.name,
            "pipeline": self._graph.pipeline,
            "root": self._graph.root,
            "files": list(self._files),
            "target": str(self._graph.target.get("name", "dry-run")),
            "live": self._graph.live,
            **self._source,
            "started": _iso(self._started_s),
            "seconds": round(now_s - self._started_s, 6),
            "exit_code": exit_code,
            **_confinement(results),
            **counts,
            "stages": {id_: self._entry(result) for id_, result in results.items()},
        }
        record = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
        signed = Records(self._home).seal.signed(record, "run", self.folder.name)
        write_atomic(self.folder / "record.json", signed, tmp=self._home / "tmp")
        return RunRecord(self.folder, data)

    def _entry(self, result: StageResult) -> Json:
        """Return a stage's entry, with its place in the graph: a run can be drawn without its pipeline."""
        entry = _entry(result, self._graph.stages[result.id])
        if (start_s := self._starts_s.get(result.id)) is not None:
            entry["start"] = round(start_s, 6)
        return entry


def _locked(log: TextIO) -> bool:
    """Lock a log: whoever finds it free knows that the run has ended. Nothing waits for one who looks."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _confinement(results: Mapping[str, StageResult]) -> dict[str, Json]:
    """Return what the least confined worker was confined by, and what any of them was not kept from."""
    weakest = max(results.values(), key=lambda r: (len(r.lacks), bool(r.sandbox)), default=None)
    lacks = dict.fromkeys(lack for result in results.values() for lack in result.lacks)
    return {"sandbox": weakest.sandbox if weakest else "", "unconfined": list(lacks)}


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _entry(result: StageResult, node: StageNode) -> dict[str, Json]:
    entry: dict[str, Json] = {
        "state": result.state,
        "uses": node.uses,
        "after": list(node.upstream),
        "key": result.key,
        "outputs": {name: artifact.digest for name, artifact in result.outputs.items()},
        "seconds": round(result.seconds, 6),
        "figures": dict(result.figures),
    }
    if node.converges:
        entry["converges"] = True
    if result.outputs:
        entry["artifacts"] = {name: artifact.as_dict() for name, artifact in result.outputs.items()}
    for name in ("reason", "error", "workdir", "evidence", "sandbox"):
        if value := getattr(result, name):
            entry[name] = value
    return entry


def _artifact(entry: Json) -> Artifact:
    assert isinstance(entry, dict)
    kind: Kind = "folder" if entry["kind"] == "folder" else "file"
    return Artifact(str(entry["digest"]), kind, int(str(entry["size"])), entry.get("executable") is True)


def recorded_runs(
    home: Path, files: Files | None = None, *, before: float = math.inf, writable: bool = True
) -> Iterator[RunRecord]:
    """Yield the sound run records, of one pipeline or of all, the newest first, of those `before` a number.

    One that was damaged or forged is left out, and all are of a store that is only read and keeps its key.
    """
    records = Records(home, writable=writable)
    if not writable and records.seal.secret() is None:
        return
    names = [name for name in listdir(f"{home}/runs") if 0 < number_of(name) < before]
    for name in sorted(names, key=lambda name: (number_of(name), name), reverse=True):
        record = _read(home / "runs" / name, records)
        if record is not None and files in (None, record.files):
            yield record


def run_before(run: RunRecord) -> RunRecord | None:
    """Return the pipeline's sound run before this one."""
    return next(recorded_runs(run.folder.parent.parent, run.files, before=run.number), None)


def read_record(home: Path, files: Files, run: str = "") -> RunRecord:
    """Return a pipeline's newest run, or the one whose id begins with `run` or whose number it is.

    Raises UsageError if none is, and for a run of another pipeline.
    """
    if not run:
        return _newest_run(home, files)
    found = [record for record in recorded_runs(home) if _is_named(record.id, run)]
    for record in found:
        if record.files == files:
            return record
    if found:
        own, other = describe(files, home), describe(found[0].files, home)
        raise UsageError(f"run {found[0].id} belongs to {other}, not to {own}", fix=f"use {other}")
    if any(_is_named(name, run) for name in listdir(f"{home}/runs")):
        raise UsageError(f"run {run} has no valid record", fix="run again")
    raise UsageError(f"no run {run!r} is recorded here", fix="`deploy-runner show --runs` lists them")


def _is_named(name: str, run: str) -> bool:
    """Say whether a run is meant by its number, or by the start of its id."""
    return number_of(name) == int(run) if run.isdecimal() and len(run) < 16 else name.startswith(run)


def _newest_run(home: Path, files: Files) -> RunRecord:
    others = []
    for record in recorded_runs(home):
        if record.files == files:
            return record
        others.append(describe(record.files, home))
    if not others:
        raise UsageError("there are no runs yet", fix="start with `deploy-runner run`")
    known = ", or ".join(list(dict.fromkeys(others))[:3])
    raise UsageError(f"{describe(files, home)} has not been run yet", fix=f"run it, or use {known}")


def kept_runs(home: Path, count: int) -> dict[str, list[str]]:
    """Return what a collection keeps: run id → the action keys in it.

    That is the last `count` runs of each pipeline in whatever project it is, and what is pinned. Of pipelines
    whose files are gone it is the last run alone, and only that of the `count` that ran last, so that the
    runs of passing folders don't stay for ever.
    """
    kept: dict[str, list[str]] = {run: [] for run in pinned_runs(home)}
    seen: Counter[Files] = Counter()
    gone: set[Files] = set()
    for run in recorded_runs(home):
        seen[run.files] += 1
        limit = count
        if not _is_there(run, home):
            gone.add(run.files)
            limit = len(gone) <= count
        if seen[run.files] <= limit or run.id in kept:
            kept[run.id] = [str(stage["key"]) for stage in run.stages.values()]
    return kept


def _is_there(run: RunRecord, home: Path) -> bool:
    """Say whether a run's pipeline exists: beside the store as before, or where it was if the store moved."""
    before = os.path.join(str(run.data.get("root", "")), os.path.basename(str(run.data["pipeline"])))
    return is_there(run.files, home) or os.path.isfile(before)


def pinned_runs(home: Path) -> set[str]:
    """Return the ids of the runs that are kept for good: an empty file says it, which can't be damaged."""
    return {name for name in listdir(f"{home}/runs") if (home / "runs" / name / _PINNED).exists()}


def pin_run(home: Path, run: str, *, keep: bool) -> None:
    """Keep a run for good, or no longer. Raises StoreError where that can't be written."""
    pin = home / "runs" / run / _PINNED
    if keep:
        write_atomic(pin, b"", tmp=home / "tmp")
        return
    try:
        pin.unlink(missing_ok=True)
    except OSError as error:
        raise store_error(error, pin) from error


def _read(folder: Path, records: Records) -> RunRecord | None:
    body = records.seal.signed_body(read_or_none(folder / "record.json") or b"", "run", folder.name)
    data = json.loads(body) if body is not None else {}
    ours = data.get("id") == folder.name and "files" in data
    return RunRecord(folder, data) if ours else None
