"""`run`: run the stages that are out of date and show their progress and result."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from ..types import Event, RunOptions, StageResult
from .options import JsonResult, LogSwitch, Option, QuietSwitch, Selection, positive, size
from .outputs import afterwards

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.execute.fork import ForkServer
    from ..engine.runs import RunRecord

__all__ = ["Run", "View", "run_and_show"]

_INTERRUPTED = 130


class View(NamedTuple):
    """What a run shows: `json` one object at its end, `log` the stages' lines, `quiet` errors only."""

    json: bool = False
    log: bool = False
    quiet: bool = False


class Run(NamedTuple):
    """Run the stages that are out of date."""

    selection: Annotated[Selection, "the stages to run, with their dependencies (default: all)"]
    json: JsonResult = False
    fail_fast: Annotated[bool, Option("stop at the first failure")] = False
    force: Annotated[bool, Option("run the named stages even on a hit")] = False
    cpu: Annotated[int | None, Option("cores to use (default: all)", "N", positive)] = None
    memory: Annotated[int | None, Option("memory to use, e.g. 8GiB", "SIZE", size)] = None
    keep_workdirs: Annotated[bool, Option("keep the workdir of each stage that ran")] = False
    require_sandbox: Annotated[
        bool, Option("run nothing if this machine can't confine stages fully (see `doctor`)")
    ] = False
    executor: Annotated[
        Literal["local", "ray"] | None, Option("where stages run (default: as the pipeline says, or local)")
    ] = None
    ray_address: Annotated[
        str | None, Option("the cluster, e.g. ray://head:10001 (default: Ray on this machine)", "ADDRESS")
    ] = None
    log: LogSwitch = False
    quiet: QuietSwitch = False

    def __call__(self) -> int:
        """Load and run; where the pipeline must be compiled, the fork server starts meanwhile."""
        early: list[ForkServer] = []

        def start_server() -> None:
            from ..engine.execute.fork import ForkServer

            early.append(ForkServer(threads=1))

        options = RunOptions(
            cpu=self.cpu, memory_bytes=self.memory, fail_fast=self.fail_fast, force=self.force,
            keep_workdirs=self.keep_workdirs, require_sandbox=self.require_sandbox,
            executor=self.executor, ray_address=self.ray_address,
        )  # fmt: skip
        try:
            pipeline = self.selection.load(on_compile=start_server)
            view = View(self.json, self.log, self.quiet)
            early_server = early[0] if early else None
            record = run_and_show(pipeline, self.selection.names, options, view, early_server)
            for line in () if self.json or self.quiet else afterwards(record, self.selection):
                print(line)
            return record.exit_code
        finally:
            for server in early:
                server.stop()


def run_and_show(
    pipeline: Pipeline,
    names: Sequence[str],
    options: RunOptions,
    view: View,
    early: ForkServer | None = None,
) -> RunRecord:
    """Run and show it; append the job summary if GitHub requests one."""
    from .. import api
    from ..report.choice import choose
    from ..report.terminal import Silent

    stream = sys.stderr if view.json else sys.stdout
    reporter = Silent() if view.quiet else choose(pipeline.graph, os.environ, stream=stream, log=view.log)
    results: dict[str, StageResult] = {}

    def on_event(event: Event) -> None:
        if event.result is not None:
            results[event.stage] = event.result
        reporter(event)

    started_s = time.monotonic()
    try:
        record = api.run(pipeline, names, options, on_event=on_event, early=early)
    finally:
        reporter.finish(results, time.monotonic() - started_s)
    if view.quiet:
        for result in results.values():
            if result.state == "failed":
                print(f"{result.id}: {result.error}", file=sys.stderr)
    if lacks := record.unconfined:
        print(f"warning: stages were not kept from {', '.join(lacks)}", file=sys.stderr)
    if record.exit_code == _INTERRUPTED:
        print("interrupted; finished artifacts are kept, run again to continue", file=sys.stderr)
    if "GITHUB_STEP_SUMMARY" in os.environ:
        from ..report.github import add_to_summary, job_summary

        add_to_summary(job_summary(record, os.environ), os.environ)
    if view.json:
        print(json.dumps(record.summary(), ensure_ascii=False))
    return record
