"""The summary of a job on GitHub, which shows nothing of one above 1 MiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy_runner.engine.runs import COUNTED, RunRecord
from deploy_runner.report.github import job_summary


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
    text = job_summary(RunRecord(Path("x"), data))
    assert len(text.encode()) < 2**20
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows[0] == "| bad | failed | 1.0 s | a \\| b &lt;c><br>d |"
    assert text.endswith(f"\n\nThe run's report has {len(stages) - len(rows):,} more stages.\n")
    assert 10_000 < len(rows) < 40_000
