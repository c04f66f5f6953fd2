"""`cache`: the local store's upkeep, and what it shares with other machines."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

from ..api import place_of
from ..engine.runs import KEPT_RUNS, kept_runs, pin_run, read_record
from ..errors import UsageError
from ..types import Json
from .options import Argument, JsonSwitch, Option, Selection, positive

if TYPE_CHECKING:
    from ..store.cas import Store

__all__ = ["Cache"]

_KEPT_DAYS = 30
_ACTIONS = (
    "status: show what the store and the shared cache have; verify: verify every object; gc: remove what no "
    "kept run refers to; push: upload what was built here; pull: download what a run would use; pin, unpin: "
    "keep a run permanently or stop keeping it"
)
_REMOTE = "verify, gc: the shared cache instead of the local store"


class _Report(Protocol):
    def as_dict(self) -> dict[str, Json]: ...


class Cache(NamedTuple):
    """Verify and clean up the store or the shared cache, exchange outputs between them, pin runs."""

    action: Annotated[Literal["status", "verify", "gc", "push", "pull", "pin", "unpin"], Argument(_ACTIONS)]
    selection: Annotated[Selection, "for pull, the stages to download (default: all)"]
    remote: Annotated[bool, Option(_REMOTE)] = False
    run: Annotated[str, Option("pin, unpin: the run (default: the pipeline's last)", "ID")] = ""
    keep_runs: Annotated[
        int | None,
        Option(f"gc: how many runs of each pipeline to keep (default: {KEPT_RUNS})", "N", positive),
    ] = None
    keep_days: Annotated[
        int | None,
        Option(f"gc --remote: how old an action record may become (default: {_KEPT_DAYS})", "N", positive),
    ] = None
    dry_run: Annotated[bool, Option("gc: show what would be removed")] = False
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Do what the action says. What concerns the local store alone doesn't compile the pipeline."""
        self._reject_options()
        if self.action == "status":
            from .cache_status import status

            found = status(self.selection.load())
            return self._print(found, found.exit_code)
        if self.action in ("push", "pull") or self.remote:
            return self._exchange()
        return self._keep()

    def _reject_options(self) -> None:
        """Raise UsageError for an option that the action doesn't have: nothing is left out in silence."""
        gc, verify = self.action == "gc", self.action == "verify"
        for name, given, taken, by in (
            ("--remote", self.remote, gc or verify, "verify and gc"),
            ("--run", self.run, self.action in ("pin", "unpin"), "pin and unpin"),
            ("--keep-runs", self.keep_runs, gc and not self.remote, "gc of the local store"),
            ("--keep-days", self.keep_days, gc and self.remote, "gc --remote"),
            ("--dry-run", self.dry_run, gc, "gc"),
            ("the name of a stage", self.selection.names, self.action == "pull", "pull"),
        ):
            if given and not taken:
                raise UsageError(f"cache {self.action}: {name} is for {by}")

    def _keep(self) -> int:
        """Do what concerns the local store alone."""
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
        return self._print(report, 0 if report.ok else 1)

    def _collect(self, store: Store) -> int:
        from ..store.gc import collect

        count = self.keep_runs or KEPT_RUNS
        return self._print(collect(store, lambda: kept_runs(store.home, count), dry_run=self.dry_run))

    def _exchange(self) -> int:
        """Do what concerns the shared cache."""
        from . import cache_remote

        pipeline, store = cache_remote.shared_store(self.selection)
        if self.action == "push":
            sent = cache_remote.push(store)
            return self._print(sent, sent.exit_code)
        if self.action == "pull":
            pulled = cache_remote.pull(pipeline, store, self.selection.names)
            return self._print(pulled, 1 if pulled.lost else 0)
        if self.action == "verify":
            verified = cache_remote.verify(store)
            return self._print(verified, 0 if verified.ok else 1)
        days = self.keep_days or _KEPT_DAYS
        return self._print(cache_remote.collect(store, days, dry_run=self.dry_run))

    def _print(self, report: _Report, exit_code: int = 0) -> int:
        print(json.dumps(report.as_dict(), ensure_ascii=False) if self.json else report)
        return exit_code
