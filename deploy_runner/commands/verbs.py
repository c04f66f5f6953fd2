"""What the verbs print: each function takes what was parsed and returns the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import place_of
from ..engine.runs import RunRecord, kept_runs, pin_run, read_record
from ..errors import DeployRunnerError, UsageError
from ..types import Event, Json, RunOptions, StageResult

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.execute.fork import ForkServer

_KEPT_RUNS = 10

__all__ = [
    "cache",
    "convert",
    "explain",
    "plan",
    "run",
    "stages",
    "status",
]


def run(path: str, names: list[str], args: argparse.Namespace) -> int:
    """Load and run; where the pipeline must be compiled, the fork server starts meanwhile."""
    from ..api import load

    early: list[ForkServer] = []

    def start_server() -> None:
        from ..engine.execute.fork import ForkServer

        early.append(ForkServer(threads=1))

    try:
        pipeline = load(path, config=args.config, sets=args.sets, on_compile=start_server)
        return _run(pipeline, names, args, early[0] if early else None).exit_code
    finally:
        for server in early:
            server.stop()


def _run(
    pipeline: Pipeline, names: list[str], args: argparse.Namespace, early: ForkServer | None
) -> RunRecord:
    """Run and show it; append the job summary if GitHub requests one."""
    from .. import api
    from ..report.choice import choose
    from ..report.terminal import Silent

    stream = sys.stderr if args.json else sys.stdout
    quiet = args.quiet
    reporter = Silent() if quiet else choose(pipeline.graph, os.environ, stream=stream, log=args.log)
    results: dict[str, StageResult] = {}

    def on_event(event: Event) -> None:
        if event.result is not None:
            results[event.stage] = event.result
        reporter(event)

    started_s = time.monotonic()
    try:
        record = api.run(
            pipeline,
            names,
            _options(args),
            on_event=on_event,
            early=early,
        )
    finally:
        reporter.finish(results, time.monotonic() - started_s)
    if quiet:
        for result in results.values():
            if result.state == "failed":
                print(f"{result.id}: {result.error}", file=sys.stderr)
    if lacks := record.unconfined:
        print(f"warning: stages were not kept from {', '.join(lacks)}", file=sys.stderr)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        from ..report.github import job_summary

        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(job_summary(record))
    if args.json:
        print(json.dumps(record.summary(), ensure_ascii=False))
    return record


def _options(args: argparse.Namespace) -> RunOptions:
    """Return the options of `run`; what a verb doesn't have is as usual."""
    given = {**vars(args), "memory_bytes": getattr(args, "memory", None)}
    return RunOptions(**{name: given[name] for name in RunOptions._fields if name in given})


def convert(args: argparse.Namespace, shape: list[int]) -> int:
    """Write a pipeline for the formats, run it, and copy what it made into a folder.

    A format that fails doesn't keep the others from being made.
    """
    from .. import api
    from .convert import FORMATS, write_pipeline

    formats = [name.strip() for name in args.to.split(",") if name.strip()]
    path, folder = Path(args.pipeline), Path(args.output)
    write_pipeline(
        path, args.checkpoint, formats,
        factory=args.factory, shape=shape, dtype=args.dtype, calibration=args.calibration,
    )  # fmt: skip
    pipeline = api.load(path)
    places = {}
    for name in formats:
        stage, _, output = FORMATS[name][0].rpartition(".")
        place = folder / name / Path(pipeline.graph.stages[stage].outputs[output].path).name
        if place.exists():
            raise UsageError(f"{place} already exists", fix="choose another folder with --output")
        places[f"{stage}.{output}"] = place
    record = _run(pipeline, [], args, None)
    for name, place in places.items():
        stage, _, output = name.rpartition(".")
        artifact = record.artifacts(stage).get(output)
        if artifact is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            pipeline.store.materialise(artifact, place)
            if not args.quiet:
                print(place, file=sys.stderr if args.json else sys.stdout)
    return record.exit_code


def plan(pipeline: Pipeline, names: list[str], args: argparse.Namespace) -> int:
    """Print each stage's state and reason; with --values the resolved values instead."""
    if args.values:
        return _plan_values(pipeline, args)
    from .. import api

    actions = api.plan(pipeline, names).actions
    pushes = [a.stage for a in actions if a.state == "converge"]
    drift = {stage: _drift(pipeline, stage) for stage in pushes}
    if args.json:
        rows = [
            {"stage": a.stage, "state": a.state, "key": a.key, "reason": a.reason}
            | ({"remote": drift[a.stage]} if a.stage in drift else {})
            for a in actions
        ]
        print(json.dumps({"target": pipeline.graph.target.get("name"), "actions": rows}))
        return 0
    width = max((len(a.stage) for a in actions), default=0)
    for action in actions:
        print(f"{action.stage:<{width}}  {action.state:<8} {action.reason}".rstrip())
        for line in drift.get(action.stage, ()):
            print(f"{'':<{width}}    {line}")
    pending = sum(a.state != "hit" for a in actions)
    print(f"{len(actions)} stages: {pending} to run, {len(actions) - pending} up to date")
    return 0


def _drift(pipeline: Pipeline, stage: str) -> list[str]:
    """Return what a live push would change on the remote, or why that can't be told."""
    from . import live

    try:
        findings = live.status(pipeline, [stage])[stage]
    except DeployRunnerError as error:
        return [f"the remote can't be read: {error}"]
    return [str(f) for f in findings if not f.in_sync] or ["the remote matches the pipeline"]


def status(pipeline: Pipeline, names: list[str], args: argparse.Namespace) -> int:
    """Print every fact about the remote beside what the pipeline says; exit 1 where they differ."""
    from . import live

    found = live.status(pipeline, names, log=lambda line: print(line, file=sys.stderr))
    rows = {
        stage: [{**f._asdict(), "in_sync": f.in_sync} for f in findings] for stage, findings in found.items()
    }
    in_sync = all(f.in_sync for findings in found.values() for f in findings)
    if args.json:
        print(json.dumps({"in_sync": in_sync, "stages": rows}, ensure_ascii=False))
        return 0 if in_sync else 1
    for stage, findings in found.items():
        print(f"{stage}:")
        for finding in findings:
            print(f"  {'=' if finding.in_sync else '≠'} {finding}")
    print("in sync" if in_sync else "the deployment differs from the pipeline")
    return 0 if in_sync else 1


def _plan_values(pipeline: Pipeline, args: argparse.Namespace) -> int:
    graph = pipeline.graph
    values: dict[str, Json] = {f"vars.{k}": v for k, v in graph.vars.items()}
    for id_, node in graph.stages.items():
        values |= {f"stages.{id_}.with.{k}": v for k, v in node.params.items()}
    values |= {f"target.{k}": v for k, v in graph.target.items()}
    rows = {path: (value, _origin(graph.origins, path)) for path, value in values.items()}
    if args.json:
        print(json.dumps({p: {"value": v, "origin": o} for p, (v, o) in rows.items()}))
        return 0
    for path, (value, origin) in rows.items():
        print(f"{path} = {json.dumps(value, ensure_ascii=False)}  ({origin})")
    return 0


def _origin(origins: object, path: str) -> str:
    assert hasattr(origins, "get")
    base = path
    if path.startswith("stages.") and "[" in path:
        head, _, tail = path.partition("[")
        base = head + tail.partition("]")[2]
    while base:
        if found := origins.get(base):
            return str(found)
        base = base.rpartition(".")[0]
        if base.endswith(".with") or "." not in base:
            break
    return "default"


def explain(pipeline: Pipeline, names: list[str], args: argparse.Namespace) -> int:
    """Print the verdict on each stage and every component that changed."""
    from .. import api
    from ..pipeline.graph import select

    if not names:
        raise UsageError("explain needs the name of a stage", fix="`deploy-runner explain STAGE`")
    wanted = [
        id_
        for id_ in select(pipeline.graph, names)
        if id_ in names or pipeline.graph.stages[id_].base in names
    ]
    rows = []
    for id_ in wanted:
        explanation = api.explain(pipeline, id_)
        reasons = [str(change) for change in explanation.changes]
        rows.append(
            {
                "stage": id_,
                "state": explanation.state,
                "reason": explanation.reason,
                "changes": reasons,
            }
        )
        if not args.json:
            print(f"{id_}: {explanation.state}: {explanation.reason}".rstrip(": "))
            for reason in reasons:
                print(f"  {reason}")
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
    return 0


def cache(path: str, args: argparse.Namespace) -> int:
    """Verify every object, collect what nothing refers to, or pin a run against that."""
    from ..store.cas import Store
    from ..store.namespace import protected_home

    home, files = place_of(path, args.config)
    store = Store(home, protected=protected_home(home, os.environ))
    if args.action in ("pin", "unpin"):
        with store.hold():  # A collection must not take the run between the look and the pin.
            run_id = read_record(home, files, args.run).id
            pin_run(home, run_id, keep=args.action == "pin")
        print(json.dumps({args.action: run_id}) if args.json else f"{args.action}ned {run_id}")
        return 0
    if args.action == "verify":
        with store.hold():
            report = store.verify_all()
        if args.json:
            print(json.dumps(report.as_dict()))
        else:
            print(report)
        return 0 if report.ok else 1
    from ..store.gc import collect

    collected = collect(store, lambda: kept_runs(home, args.keep_runs or _KEPT_RUNS), dry_run=args.dry_run)
    print(json.dumps(collected.as_dict()) if args.json else collected)
    return 0


def stages(args: argparse.Namespace) -> int:
    """List the stage types, or describe one."""
    from ..pipeline.schema import describe_stage_types

    described = describe_stage_types(Path.cwd())
    if args.type:
        found = [d for d in described if d["uses"] == args.type]
        if not found:
            from difflib import get_close_matches

            close = get_close_matches(args.type, [str(d["uses"]) for d in described], n=1)
            fix = f"did you mean {close[0]!r}?" if close else "`deploy-runner stages` lists them"
            raise UsageError(f"there is no stage type {args.type!r}", fix=fix)
        described = found
    if args.json:
        print(json.dumps(described, ensure_ascii=False))
    elif args.type:
        from ..report.stage_types import describe

        print(describe(described[0]))
    else:
        width = max(len(str(d["uses"])) for d in described)
        for entry in described:
            print(f"{entry['uses']:<{width}}  {entry['summary']}")
    return 0
