"""The summary of a job on GitHub: what a pull request changes, and no more than GitHub shows, which is 1 MiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy_runner.engine.runs import COUNTED, RunRecord
from deploy_runner.report.github import job_summary
from tests.conftest import Project
from tests.reports import choosing


def test_a_summary_of_very_many_stages_begins_with_the_failed_ones_and_says_what_it_leaves_out() -> None:
    entry: dict[str, Any] = {"state": "ran", "seconds": 1.0, "figures": {"letters": 1}, "error": ""}
    stages = {f"größe-{n}": entry for n in range(40_000)}
    stages["bad"] = {**entry, "state": "failed", "error": "a | b <c>\nd"}
    data: dict[str, Any] = {
        **dict.fromkeys(COUNTED, 0),
        "name": "n",
        "target": "t",
        "seconds": 1.0,
        "stages": stages,
    }
    text = job_summary(RunRecord(Path("x"), data), {})
    assert len(text.encode()) < 2**20
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == "| bad | failed | 1.0 s | a \\| b &lt;c><br>d |"
    assert text.endswith(f"\n\nThe run's report has {len(stages) - len(rows):,} more stages.\n")
    assert 10_000 < len(rows) < 40_000


def summary(project: Project, *args: str, **env: str) -> str:
    file = project.folder / "summary.md"
    file.unlink(missing_ok=True)
    project.cli("run", *args, exits=None, GITHUB_STEP_SUMMARY=str(file), **env)
    return file.read_text()


def on(branch: str) -> dict[str, str]:
    return {"GITHUB_REF": f"refs/heads/{branch}", "GITHUB_SHA": "0123456789abcdef"}


def pull_request(branch: str) -> dict[str, str]:
    names = {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/7/merge"}
    return {**names, "GITHUB_BASE_REF": branch}


def test_a_pull_request_shows_what_it_changes_of_accuracy_latency_and_size(project: Project) -> None:
    choosing(project, accuracy=98, bytes_=4096)
    assert "| accuracy of int8 | **98.00 %** (99.00 % original) |\n" in summary(project, **on("main"))
    choosing(project, accuracy=97.5, bytes_=2048)
    text = summary(project, **pull_request("main"))
    assert (
        """\
| figure | this run | main | change |
|---|---:|---:|---:|
| accuracy of int8 | **97.50 %** (98.50 % original) | 98.00 % | \N{MINUS SIGN}0.50 points (\N{MINUS SIGN}0.5 %) |
| latency of int8 | **49 µs** (50 µs fp32) | 49 µs | none |
| size of int8 | **2.0 KiB** (2.1 KiB fp32) | 4.0 KiB | \N{MINUS SIGN}2.0 KiB (\N{MINUS SIGN}50.0 %) |

Compared with run 1 of main, commit 0123456.
"""
        in text
    )


@pytest.mark.slow
def test_a_pull_request_is_compared_with_the_newest_success_of_its_own_base_and_pipeline(
    project: Project,
) -> None:
    compared = "Compared with run"
    none = "The store has no successful run of {} with this pipeline to compare with.\n"

    def made(accuracy: float, *args: str, **env: str) -> str:
        choosing(project, accuracy=accuracy, bytes_=4096)
        return summary(project, *args, **env)

    made(90, **on("main"))
    made(91, **on("release/1|x"))
    made(92)
    project.write("other.yaml", "stages: {pick: {with: {names: [a, b]}}}")
    made(93, "--config", "other.yaml", **on("main"))
    project.pipeline("pick: {uses: text.odd, with: {how: gate}}")
    summary(project, **on("main"))
    text = made(95, **pull_request("main"))
    assert "| 90.00 % | +5.00 points (+5.6 %) |" in text
    assert f"{compared} 1 of main, commit 0123456." in text
    text = made(95, **pull_request("release/1|x"))
    assert "| figure | this run | release/1\\|x | change |" in text
    assert f"{compared} 2 of release/1\\|x" in text
    text = made(95, "--config", "other.yaml", **pull_request("main"))
    assert "| accuracy of b | **95.00 %** (96.00 % original) | 93.00 % |" in text
    assert f"{compared} 4 of main" in text
    assert none.format("dev") in made(95, **pull_request("dev"))
    key = {"DEPLOY_RUNNER_CACHE_KEY": "a key that main does not have"}
    assert none.format("main") in made(95, **pull_request("main"), **key)
    (project.folder / ".deploy-runner/secret").unlink()
    assert none.format("main") in made(95, **pull_request("main"))
