"""`make coverage` counts every process: the command line, the fork server, and confined workers."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from coverage import CoverageData

from deploy_runner.engine.execute import server, supervisor, worker
from deploy_runner.stages.run import command, python
from tests.conftest import ROOT, Project

TEST = """
import subprocess, sys

def test_the_pipeline_runs():
    subprocess.run([sys.executable, "-m", "deploy_runner", "run"], cwd={folder!r}, check=True)
"""


@pytest.mark.slow
def test_lines_that_only_a_confined_worker_runs_are_counted(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.write("steps.py", "def write(ctx, inputs, outputs): outputs['text'].write_text('done')")
    project.pipeline(
        """
        function: {uses: run.python, outputs: {text: a.txt}, with: {function: "steps.py:write"}}
        command: {uses: run.command, outputs: {text: b.txt}, with: {command: "echo done > $OUTPUT_TEXT"}}
        """
    )
    test = project.write("test_it.py", TEST.format(folder=str(project.folder)))
    data, summary = tmp_path / "coverage" / "data", tmp_path / "summary.md"
    quietly = ("-q", "-p", "no:cacheprovider", f"--rootdir={project.folder}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.coverage", *quietly, str(test)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**project.env, "COVERAGE_FILE": str(data), "GITHUB_STEP_SUMMARY": str(summary)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary.read_text().startswith("### Coverage")
    assert "**TOTAL**" in summary.read_text()
    counted = CoverageData(str(data))
    counted.read()
    for function in (
        python.RunPython.run, command.RunCommand.command, worker._confine, worker._exec, worker._write_result,
        supervisor._watch, server._Server._start,
    ):  # fmt: skip
        assert set(statements(function)) & lines(counted, function), function


def statements(function: Callable[..., object]) -> range:
    """Return the line numbers of a function's body."""
    source, first = inspect.getsourcelines(function)
    return range(first + 1, first + len(source))


def lines(counted: CoverageData, function: Callable[..., object]) -> set[int]:
    file = Path(inspect.getfile(function)).resolve()
    return set(counted.lines(str(file)) or ())
