"""A run that is interrupted after its last stage has a record, at whatever call."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import Project

AT_MANY_CALLS = """
import json, signal, sys
from deploy_runner import api
from deploy_runner.engine.runs import read_record
from deploy_runner.types import RunOptions

turns = int(sys.argv[1])
pipeline = api.load("pipeline.yaml")


def run(interrupted_at):
    "Return how many calls the run made between its last stage and its report, and how it ended."
    calls = 0

    def count(frame, event, function):
        nonlocal calls
        if frame.f_code.co_name == "_write_report":
            sys.setprofile(None)
        elif event in ("call", "c_call"):
            calls += 1
            if calls == interrupted_at:
                signal.raise_signal(signal.SIGINT)

    def begin(event):
        if event.kind == "stage-finished":
            sys.setprofile(count)

    try:
        ended = api.run(pipeline, on_event=begin, options=RunOptions(force=True)).exit_code
    except KeyboardInterrupt:
        ended = 130
    finally:
        sys.setprofile(None)
    return calls, ended


total, _ = run(0)
ended = [run(1 + total * turn // turns)[1] for turn in range(turns)]
records = [read_record(pipeline.home, pipeline.files, str(2 + turn)).exit_code for turn in range(turns)]
print(json.dumps([ended, records]))
"""


def test_a_run_that_is_interrupted_after_its_last_stage_has_a_record(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    script = [sys.executable, "-c", AT_MANY_CALLS, "16"]
    done = subprocess.run(
        script, cwd=project.folder, env=project.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ended, recorded = json.loads(done.stdout)
    assert ended == recorded
    assert set(recorded) == {0, 130}
