"""What a pipeline has: its runs, compared and shown, and the outputs that are up to date.

A stage's output is that of the plan's verdict, never merely that of the last run: where the stage is
no hit, the reason is said. An older artifact is had by naming its run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from ..api import explain, place_of
from ..engine.runs import RunRecord, read_record, recorded_runs, run_before
from ..errors import UsageError, closest, counted
from ..store.files import writing
from ..types import Artifact, Json
from .downloads import Needed, bring
from .options import JsonSwitch, Option, Selection
from .outputs import command, rows_of, table

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.plan import Explanation

__all__ = ["RUN_INSTEAD", "Diff", "Found", "Get", "Show", "find_output"]

_BY_ID = "by its number or the start of its id"
RUN_INSTEAD = Option(f"use the output of this run instead, {_BY_ID}", "ID")
_MADE = ("ran", "hit", "healed", "converged")


class Found(NamedTuple):
    """An output that was asked for: the artifact, and the name of the file or folder that it is."""

    needed: Needed
    file: str

    @property
    def artifact(self) -> Artifact:
        """The artifact."""
        return self.needed.artifact


class Show(NamedTuple):
    """Show the pipeline's last run, or one of its stages."""

    selection: Annotated[Selection, "the stage to show"]
    run: Annotated[str, Option(f"another run, {_BY_ID}", "ID")] = ""
    runs: Annotated[bool, Option("list the pipeline's runs")] = False
    log: Annotated[bool, Option("print what the stage's worker printed")] = False
    replay: Annotated[bool, Option("print the command that repeats the stage alone")] = False
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print a recorded run, one of its stages, or the list of runs."""
        names = self.selection.names
        home, files = place_of(self.selection.path, self.selection.config)
        if self.runs:
            for record in recorded_runs(home, files):
                _print_line(record, as_json=self.json)
        elif not names:
            _print_run(read_record(home, files, self.run), as_json=self.json)
        for name in () if self.runs else names:
            if self.log or self.replay or self.run:
                self._print_recorded(_run_with(home, files, name, self.run), name)
            else:
                self._print_now(name)
        return 0

    def _print_recorded(self, record: RunRecord, name: str) -> None:
        stage = record.stages[name]
        if self.log:
            log = record.folder / "logs" / f"{name}.log"
            if log.exists():
                print(log.read_text(encoding="utf-8", errors="replace"), end="")
            else:
                print(f"{name} did not run in {record.id}: it was a {stage['state']}")
        elif self.replay:
            print(f"{command('run', self.selection, name)} --force --keep-workdirs --log")
        elif self.json:
            print(json.dumps({"stage": name, **stage}, ensure_ascii=False))
        else:
            _print_stage(name, stage)

    def _print_now(self, name: str) -> None:
        """Print what a run would find of a stage now; where it is no hit, how it last ended, and why."""
        pipeline = self.selection.load()
        if name not in pipeline.graph.stages:
            raise _unknown(name, pipeline.graph.stages, f"{self.selection.path} has")
        with pipeline.store.hold():
            verdict = explain(pipeline, name)
        record = _newest_with(pipeline, name)
        stage = _as_now(verdict, record.stages[name] if record else None)
        make = f"run `{command('run', self.selection, name)}`"
        if stage is None:
            raise UsageError(f"{name} has never run: {verdict.why}", fix=make)
        stale = _stale(verdict, stage)
        if self.json:
            now = {"up_to_date": False, "now": stale} if stale else {"up_to_date": stage["state"] in _MADE}
            print(json.dumps({"stage": name, **now, **stage}, ensure_ascii=False))
            return
        _print_stage(name, stage)
        if stale and record:
            print(f"  not up to date: that was run {record.id}; since then: {stale} ({make})")


def _print_line(record: RunRecord, *, as_json: bool) -> None:
    data = record.data
    if as_json:
        print(json.dumps({k: v for k, v in data.items() if k != "stages"}))
    else:
        stages = counted(len(record.stages), "stage")
        print(f"{record.id}  exit {data['exit_code']}  {stages}  {data['target']}")


def _print_run(record: RunRecord, *, as_json: bool) -> None:
    from ..report.lines import duration, figures_line

    if as_json:
        print(json.dumps(dict(record.data), ensure_ascii=False))
        return
    data = record.data
    print(f"run {record.id} of {data['name']} ({data['target']}), exit {data['exit_code']}")
    width = max((len(id_) for id_ in record.stages), default=0)
    for id_, stage in record.stages.items():
        figures = stage["figures"] if isinstance(stage["figures"], dict) else {}
        said = stage.get("error") or figures_line(figures)
        seconds = duration(float(str(stage["seconds"])))
        print(f"{id_:<{width}}  {stage['state']!s:<9} {seconds:>8}  {said}".rstrip())
    if (record.folder / "report.html").exists():
        print(f"report: {record.folder / 'report.html'}")


def _run_with(home: Path, files: tuple[str, ...], name: str, run: str) -> RunRecord:
    """Return the run that is named, or the newest that the stage was part of."""
    if not run:
        for record in recorded_runs(home, files):
            if name in record.stages:
                return record
    record = read_record(home, files, run)
    if name not in record.stages:
        raise _unknown(name, record.stages, f"run {record.id} has")
    return record


def _unknown(name: str, known: Iterable[str], where: str) -> UsageError:
    fix = closest(name, known) or "`deploy-runner plan` lists them"
    return UsageError(f"{where} no stage {name!r}", fix=fix)


def _newest_with(pipeline: Pipeline, name: str) -> RunRecord | None:
    runs = recorded_runs(pipeline.home, pipeline.files)
    return next((record for record in runs if name in record.stages), None)


def _as_now(verdict: Explanation, recorded: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
    """Return a stage's entry: as recorded if that is what is up to date, else as a hit would be recorded."""
    decision = verdict.decision
    if decision is None or decision.state != "hit" or decision.record is None:
        return recorded
    if recorded is not None and recorded["key"] == decision.key and recorded["state"] in _MADE:
        return recorded
    outputs = {n: a.digest for n, a in decision.record.outputs.items()}
    figures = dict(decision.record.figures)
    return {"state": "hit", "key": decision.key, "outputs": dict(outputs), "figures": figures}


def _stale(verdict: Explanation, stage: Mapping[str, Json]) -> str:
    """Return why an entry isn't what a run would give now, nothing where it is.

    A failure is what a run would give again, as long as nothing has changed.
    """
    decision = verdict.decision
    if decision is None or decision.key != stage["key"]:
        return verdict.why
    standing = decision.state in ("hit", "converge") or stage["state"] not in _MADE
    return "" if standing else verdict.why


def _print_stage(name: str, stage: Mapping[str, Json]) -> None:
    print(f"{name}: {stage['state']}  key {stage['key']}")
    for title in ("reason", "error", "workdir", "evidence"):
        if stage.get(title):
            print(f"  {title}: {stage[title]}")
    for title in ("outputs", "figures"):
        members = stage[title]
        assert isinstance(members, dict)
        for key, value in members.items():
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"  {title[:-1]} {key}: {shown}")


class Get(NamedTuple):
    """Copy an output of a stage that is up to date out of the store."""

    selection: Annotated[Selection, "STAGE or STAGE.OUTPUT; with --list the stages (default: all)"]
    run: Annotated[str, RUN_INSTEAD] = ""
    list: Annotated[bool, Option("list the outputs of the last run: name, kind, size, digest")] = False
    to: Annotated[
        str | None, Option("target path (default: its own name, in the current folder)", "PATH", short="-o")
    ] = None
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Copy an output that is up to date, or that of a run that is named, out of the store."""
        names = self.selection.names
        if self.list:
            return self._print_list(names)
        if len(names) != 1:
            raise UsageError(
                "get needs the name of an output",
                fix="`deploy-runner get STAGE.OUTPUT --to PATH`; `deploy-runner get --list` lists them",
            )
        pipeline = self.selection.load()
        with pipeline.store.hold():
            found = find_output(pipeline, names[0], self.selection, self.run)
            destination = Path(self.to) if self.to else Path(found.file)
            if self.to and destination.is_dir():
                destination /= found.file
            if destination.exists():
                raise UsageError(f"{destination} already exists", fix="choose another path with --to")
            bring(pipeline.store, [found.needed])
            with writing(destination, "choose a folder that can be written"):
                destination.parent.mkdir(parents=True, exist_ok=True)
            pipeline.store.materialise(found.artifact, destination)
        made = {"path": str(destination), **found.artifact.as_dict()}
        print(json.dumps(made, ensure_ascii=False) if self.json else destination)
        return 0

    def _print_list(self, names: Sequence[str]) -> int:
        """Print the outputs of the last run, or those of stages as the last run that had each left them."""
        from ..report.lines import size

        if self.to:
            raise UsageError("get --list copies nothing: --to is for one output")
        home, files = place_of(self.selection.path, self.selection.config)
        rows = [row for name in names for row in rows_of(_run_with(home, files, name, self.run), [name])]
        if not names:
            record = read_record(home, files, self.run)
            rows = rows_of(record, record.stages)
        if self.json:
            print(json.dumps([row.as_dict() for row in rows], ensure_ascii=False))
            return 0
        for line in table(
            [(r.name, r.artifact.kind, size(r.artifact.size), r.artifact.digest) for r in rows]
        ):
            print(line)
        return 0


def find_output(pipeline: Pipeline, name: str, selection: Selection, run: str) -> Found:
    """Return the output that STAGE or STAGE.OUTPUT names: the one up to date, or what `run` made.

    Raises UsageError where the stage is not up to date: with the reason, and the command that makes it.
    """
    stages = pipeline.graph.stages
    record = read_record(pipeline.home, pipeline.files, run) if run else None
    known = record.stages if record else stages
    stage, output = (name, "") if name in known else (name.rpartition(".")[0], name.rpartition(".")[2])
    if stage not in known:
        raise _unknown(stage or name, known, f"run {record.id} has" if record else f"{selection.path} has")
    key, made = _recorded(record, stage) if record else _current(pipeline, stage, selection)
    output = output or _only(stage, made)
    declared = stages[stage].outputs if stage in stages else {}
    if output not in made:
        where = f" in run {record.id}" if record else ""
        wrong = "made no" if output in declared else "has no"
        raise UsageError(f"stage {stage!r} {wrong} output {output!r}{where}", fix=", ".join(made))
    needed = Needed(made[output], name, key, command("run", selection, stage))
    return Found(needed, Path(declared[output].path).name if output in declared else output)


def _only(stage: str, made: Mapping[str, Artifact]) -> str:
    if len(made) == 1:
        return next(iter(made))
    if not made:
        raise UsageError(f"stage {stage!r} produced no output")
    fix = f"choose one, e.g. {stage}.{next(iter(made))}"
    raise UsageError(f"stage {stage!r} has several outputs: {', '.join(made)}", fix=fix)


def _recorded(record: RunRecord, stage: str) -> tuple[str, Mapping[str, Artifact]]:
    return str(record.stages[stage]["key"]), record.artifacts(stage)


def _current(pipeline: Pipeline, stage: str, selection: Selection) -> tuple[str, Mapping[str, Artifact]]:
    """Return the key and the outputs of a stage that is up to date.

    That is a hit, or a live push since which nothing changed.
    """
    verdict = explain(pipeline, stage)
    decision = verdict.decision
    if decision is not None and decision.state == "hit" and decision.record is not None:
        return decision.key, decision.record.outputs
    record = _newest_with(pipeline, stage)
    made = record.artifacts(stage) if record else {}
    pushed = decision.key if decision is not None and decision.state == "converge" else ""
    if record and made and pushed and record.stages[stage]["key"] == pushed:
        return pushed, made
    fix = f"run `{command('run', selection, stage)}`"
    if record and made:
        fix += f"; --run {record.number} selects the output of its last run"
    raise UsageError(f"{stage} is not up to date: {verdict.why}", fix=fix)


class Diff(NamedTuple):
    """Compare two runs of the pipeline: figures, outputs, states."""

    selection: Selection
    old: Annotated[str, Option("default: the run before", "ID")] = ""
    new: Annotated[str, Option("default: the last run", "ID")] = ""
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print what differs between two recorded runs."""
        home, files = place_of(self.selection.path, self.selection.config)
        new = read_record(home, files, self.new)
        old = read_record(home, files, self.old) if self.old else run_before(new)
        if old is None:
            raise UsageError(f"there is no run before {new.id} to compare with", fix="run the pipeline again")
        changes = _run_changes(old, new)
        if self.json:
            print(json.dumps({"old": old.id, "new": new.id, "changes": changes}, ensure_ascii=False))
            return 0
        print(f"{old.id} → {new.id}")
        for change in changes:
            print(f"  {change['stage']}: {change['what']} {change['old']} → {change['new']}")
        if not changes:
            print("  same outputs and figures")
        return 0


def _run_changes(old: RunRecord, new: RunRecord) -> list[dict[str, Json]]:
    changes: list[dict[str, Json]] = []
    for id_ in dict.fromkeys((*old.stages, *new.stages)):
        before, after = old.stages.get(id_), new.stages.get(id_)
        if before is None or after is None:
            states = [s["state"] if s else "absent" for s in (before, after)]
            changes.append({"stage": id_, "what": "stage", "old": states[0], "new": states[1]})
            continue
        for part, title in (("outputs", "output"), ("figures", "figure")):
            one, two = before[part], after[part]
            assert isinstance(one, dict)
            assert isinstance(two, dict)
            changes += [
                {"stage": id_, "what": f"{title} {k}", "old": one.get(k), "new": two.get(k)}
                for k in dict.fromkeys((*one, *two))
                if one.get(k) != two.get(k)
            ]
    return changes
