"""One thing is counted in the singular, on the terminal and in the summary of a job."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT, Project

_PLURAL = re.compile(
    r"\{[^{}]*\} (?:action |stale |more )?(?:stages|files|objects|records|outputs|runs|leases|tensors|labels)\b"
)


def test_one_of_everything_is_counted_in_the_singular(project: Project) -> None:
    project.pipeline("hello: {uses: text.upper, inputs: {text: in.txt}}")
    wrong = project.cli("run", "pipeline.yaml", "helo", exits=2)
    assert (wrong.stdout, wrong.stderr) == (
        "",
        "error: pipeline.yaml has no stage 'helo' (did you mean 'hello'?)\n",
    )
    summary = project.folder / "summary.md"
    said = [
        project.cli("validate").stdout,
        project.cli("plan").stdout,
        project.cli("run", GITHUB_STEP_SUMMARY=str(summary)).stdout,
        project.cli("cache", "status").stdout,
        project.cli("cache", "verify").stdout,
        project.cli("show").stdout,
        summary.read_text(),
        next((project.folder / ".deploy-runner/runs").glob("*/report.html")).read_text(),
    ]
    for text, counted in zip(
        said,
        ("1 stage", "1 stage: 1 to run", "1 stage: 1 ran", "1 action record, 1 run", "1 action record"),
        strict=False,
    ):
        assert counted in text
    for text in said:
        assert not re.search(
            r"\b1 [a-z]+ ?(records|stages|objects|runs|files)\b|\b1 (?!pass)[a-z]+s\b", text
        ), text


@pytest.mark.parametrize("folder", ["commands", "report", "store"])
def test_no_message_counts_but_by_the_function_that_knows_one(folder: str) -> None:
    for file in (ROOT / "deploy_runner" / folder).glob("*.py"):
        found = [line for line in file.read_text().splitlines() if _PLURAL.search(line) and "> 1" not in line]
        assert found == [], file.name
