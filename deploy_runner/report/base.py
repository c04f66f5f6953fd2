"""The run of a branch that a pull request is compared with: the newest that succeeded with its pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.runs import RunRecord, recorded_runs
from ..pipeline.identity import beside
from ..store.namespace import protected_home

__all__ = ["base_run"]


def base_run(record: RunRecord, branch: str, environ: Mapping[str, str]) -> RunRecord | None:
    """Return the branch's run from the protected store, which is only read, or else from the run's own."""
    own = record.folder.parent.parent
    home = protected_home(own, environ) or own
    runs = recorded_runs(home, beside(record.files, own, home), writable=home == own)
    ref = f"refs/heads/{branch}"
    return next((run for run in runs if run.exit_code == 0 and run.data.get("ref") == ref), None)
