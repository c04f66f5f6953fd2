"""`cache`: verify and clean up the store, pin runs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from ..api import place_of
from ..engine.runs import kept_runs, pin_run, read_record
from .options import Argument, JsonSwitch, Option, Selection, positive

if TYPE_CHECKING:
    from ..store.cas import Store

__all__ = ["Cache"]

_KEPT_RUNS = 10
_ACTIONS = "verify every object, remove what no kept run refers to, keep a run permanently or stop keeping it"


class Cache(NamedTuple):
    """Verify and clean up the store, pin runs."""

    action: Annotated[Literal["verify", "gc", "pin", "unpin"], Argument(_ACTIONS)]
    selection: Selection
    run: Annotated[str, Option("pin, unpin: the run (default: the pipeline's last)", "ID")] = ""
    keep_runs: Annotated[
        int, Option(f"gc: how many runs of each pipeline to keep (default: {_KEPT_RUNS})", "N", positive)
    ] = _KEPT_RUNS
    dry_run: Annotated[bool, Option("gc: show what would be removed")] = False
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Verify every object, collect what nothing refers to, or pin a run against that."""
        from ..store.cas import Store
        from ..store.namespace import protected_home

        home, files = place_of(self.selection.path, self.selection.config)
        store = Store(home, protected=protected_home(home, os.environ))
        if self.action == "verify":
            return self._verify(store)
        if self.action == "gc":
            return self._collect(store)
        with store.hold():  # A collection must not take the run between the look and the pin.
            run_id = read_record(home, files, self.run).id
            pin_run(home, run_id, keep=self.action == "pin")
        print(json.dumps({self.action: run_id}) if self.json else f"{self.action}ned {run_id}")
        return 0

    def _verify(self, store: Store) -> int:
        from ..store.verify import verify

        with store.hold():
            report = verify(store)
        print(json.dumps(report.as_dict()) if self.json else report)
        return 0 if report.ok else 1

    def _collect(self, store: Store) -> int:
        from ..store.gc import collect

        collected = collect(store, lambda: kept_runs(store.home, self.keep_runs), dry_run=self.dry_run)
        print(json.dumps(collected.as_dict()) if self.json else collected)
        return 0
