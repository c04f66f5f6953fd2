"""What a pipeline has: its runs, compared and shown, and the outputs that are up to date.

A stage's output is that of the plan's verdict, never merely that of the last run: where the stage is
no hit, the reason is said. An older artifact is had by naming its run.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..api import explain, load, place_of
from ..engine.runs import RunRecord, read_record, recorded_runs
from ..errors import UsageError
from ..types import Artifact, Json

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.plan import Explanation

__all__ = ["Found", "diff", "find_output", "get", "show"]

_MADE = ("ran", "hit", "healed", "converged")


class Found(NamedTuple):
    """An output that was asked for: the artifact, and the name of the file or folder that it is."""

    artifact: Artifact
    file: str


def show(path: str, names: list[str], args: argparse.Namespace) -> int:
    """Print a recorded run, one of its stages, or the list of runs."""
    home, files = place_of(path, args.config)
    if args.runs:
        for record in recorded_runs(home, files):
            _list_run(record, args)
    elif not names:
        _show_run(read_record(home, files, args.run), args)
    for name in () if args.runs else names:
        if args.log or args.replay or args.run:
            _show_recorded(_run_with(home, files, name, args.run), name, path, args)
        else:
            _show_stage(path, name, args)
    return 0


def _list_run(record: RunRecord, args: argparse.Namespace) -> None:
    data = record.data
    if args.json:
        print(json.dumps({k: v for k, v in data.items() if k != "stages"}))
    else:
        print(f"{record.id}  exit {data['exit_code']}  {len(record.stages)} stages  {data['target']}")


def _show_run(record: RunRecord, args: argparse.Namespace) -> None:
    from ..report.lines import duration, figures_line

    if args.json:
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
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    fix = f"did you mean {close[0]!r}?" if close else "`deploy-runner plan` lists them"
    return UsageError(f"{where} no stage {name!r}", fix=fix)


def _show_recorded(record: RunRecord, name: str, path: str, args: argparse.Namespace) -> None:
    stage = record.stages[name]
    if args.log:
        log = record.folder / "logs" / f"{name}.log"
        if log.exists():
            print(log.read_text(encoding="utf-8", errors="replace"), end="")
        else:
            print(f"{name} did not run in {record.id}: it was a {stage['state']}")
    elif args.replay:
        print(f"{_command('run', path, name, args)} --force --keep-workdirs --log")
    elif args.json:
        print(json.dumps({"stage": name, **stage}, ensure_ascii=False))
    else:
        _print_stage(name, stage)


def _show_stage(path: str, name: str, args: argparse.Namespace) -> None:
    """Print what a run would find of a stage now; where it is no hit, how it last ended, and why it isn't."""
    pipeline = load(path, config=args.config, sets=args.sets)
    if name not in pipeline.graph.stages:
        raise _unknown(name, pipeline.graph.stages, f"{path} has")
    with pipeline.store.hold():
        verdict = explain(pipeline, name)
    record = _newest_with(pipeline, name)
    stage = _as_now(verdict, record.stages[name] if record else None)
    make = f"run `{_command('run', path, name, args)}`"
    if stage is None:
        raise UsageError(f"{name} has never run: {verdict.why}", fix=make)
    stale = _stale(verdict, stage)
    if args.json:
        now = {"up_to_date": False, "now": stale} if stale else {"up_to_date": stage["state"] in _MADE}
        print(json.dumps({"stage": name, **now, **stage}, ensure_ascii=False))
        return
    _print_stage(name, stage)
    if stale and record:
        print(f"  not up to date: that was run {record.id}; since then: {stale} ({make})")


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


def _command(verb: str, path: str, name: str, args: argparse.Namespace) -> str:
    """Return the command that does something to a stage of this pipeline, as it was named."""
    config = "".join(f" --config {shlex.quote(c)}" for c in args.config)
    sets = "".join(f" --set {shlex.quote(s)}" for s in args.sets)
    return f"deploy-runner {verb} {shlex.quote(path)} {shlex.quote(name)}{config}{sets}"


def get(path: str, names: list[str], args: argparse.Namespace) -> int:
    """Copy an output that is up to date, or that of a run that is named, out of the store."""
    if len(names) != 1:
        raise UsageError("get needs the name of an output", fix="`deploy-runner get STAGE.OUTPUT --to PATH`")
    pipeline = load(path, config=args.config, sets=args.sets)
    with pipeline.store.hold():
        found = find_output(pipeline, names[0], path, args)
        destination = Path(args.to) if args.to else Path(found.file)
        if args.to and destination.is_dir():
            destination /= found.file
        if destination.exists():
            raise UsageError(f"{destination} already exists", fix="choose another path with --to")
        state = pipeline.store.state(found.artifact)
        if state != "present":
            raise UsageError(f"{names[0]} is {state} in the store", fix="`deploy-runner run` rebuilds it")
        destination.parent.mkdir(parents=True, exist_ok=True)
        pipeline.store.materialise(found.artifact, destination)
    print(destination)
    return 0


def find_output(pipeline: Pipeline, name: str, path: str, args: argparse.Namespace) -> Found:
    """Return the output that STAGE or STAGE.OUTPUT names: the one up to date, or that of `args.run`.

    Raises UsageError where the stage is not up to date: with the reason, and the command that makes it.
    """
    stages = pipeline.graph.stages
    record = read_record(pipeline.home, pipeline.files, args.run) if args.run else None
    known = record.stages if record else stages
    stage, output = (name, "") if name in known else (name.rpartition(".")[0], name.rpartition(".")[2])
    if stage not in known:
        raise _unknown(stage or name, known, f"run {record.id} has" if record else f"{path} has")
    made = record.artifacts(stage) if record else _current(pipeline, stage, path, args)
    output = output or _only(stage, made)
    declared = stages[stage].outputs if stage in stages else {}
    if output not in made:
        where = f" in run {record.id}" if record else ""
        wrong = "made no" if output in declared else "has no"
        raise UsageError(f"stage {stage!r} {wrong} output {output!r}{where}", fix=", ".join(made))
    return Found(made[output], Path(declared[output].path).name if output in declared else output)


def _only(stage: str, made: Mapping[str, Artifact]) -> str:
    if len(made) == 1:
        return next(iter(made))
    if not made:
        raise UsageError(f"stage {stage!r} produced no output")
    fix = f"choose one, e.g. {stage}.{next(iter(made))}"
    raise UsageError(f"stage {stage!r} has several outputs: {', '.join(made)}", fix=fix)


def _current(pipeline: Pipeline, stage: str, path: str, args: argparse.Namespace) -> Mapping[str, Artifact]:
    """Return the outputs of a stage that is up to date: a hit, or a live push since which nothing changed."""
    verdict = explain(pipeline, stage)
    decision = verdict.decision
    if decision is not None and decision.state == "hit" and decision.record is not None:
        return decision.record.outputs
    record = _newest_with(pipeline, stage)
    made = record.artifacts(stage) if record else {}
    pushed = decision is not None and decision.state == "converge" and decision.key
    if record and made and record.stages[stage]["key"] == pushed:
        return made
    fix = f"run `{_command('run', path, stage, args)}`"
    if record and made:
        fix += f"; --run {record.number} selects the output of its last run"
    raise UsageError(f"{stage} is not up to date: {verdict.why}", fix=fix)


def diff(path: str, args: argparse.Namespace) -> int:
    """Print what differs between two recorded runs."""
    home, files = place_of(path, args.config)
    new = read_record(home, files, args.new)
    old = read_record(home, files, args.old) if args.old else _run_before(home, new)
    changes = _run_changes(old, new)
    if args.json:
        print(json.dumps({"old": old.id, "new": new.id, "changes": changes}, ensure_ascii=False))
        return 0
    print(f"{old.id} → {new.id}")
    for change in changes:
        print(f"  {change['stage']}: {change['what']} {change['old']} → {change['new']}")
    if not changes:
        print("  same outputs and figures")
    return 0


def _run_before(home: Path, new: RunRecord) -> RunRecord:
    for record in recorded_runs(home, new.files):
        if record.number < new.number:
            return record
    raise UsageError(f"there is no run before {new.id} to compare with")


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
