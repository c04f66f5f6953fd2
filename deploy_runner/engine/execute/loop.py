"""Run a graph on this machine: ready stages side by side, each in a worker of its own.

A run in which everything is a hit starts nothing and imports nothing of the worker's side.
"""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DeployRunnerError, UsageError
from ...pipeline.graph import select
from ...store.cas import Store
from ...types import (
    Artifact,
    Event,
    Executor,
    Graph,
    RefSource,
    RunOptions,
    StageNode,
    StageResult,
)
from ..plan import Decision, Planner

if TYPE_CHECKING:
    from .crews import Audience, Crew
    from .dispatch import Dispatch, Lost
    from .fork import ForkServer
    from .interrupts import Interrupts

__all__ = ["execute"]

_TRIES = 3
"""How often the inputs of one stage are made again because they are not available."""


def execute(
    graph: Graph,
    planner: Planner,
    store: Store,
    options: RunOptions,
    *,
    targets: Sequence[str] | None,
    emit: Callable[[Event], None],
    run_folder: Path,
    interrupts: Interrupts,
    environ: Mapping[str, str] = os.environ,
    early: ForkServer | None = None,
) -> dict[str, StageResult]:
    """Make what the targets (all, if None) need and lack; return every stage's result.

    A stage that fails is in the results, not raised. Once a stage has to be made, interrupts stop the
    workers, and what is not finished is "interrupted". The caller holds the store (`Store.hold`). `early` is
    a fork server that was started ahead. Raises UsageError for an unknown target, and, if the sandbox is
    required, where this machine can't confine a stage; StoreError where the store can't be used.
    """
    executor = _executor(graph, options, environ)
    wanted = select(graph, targets)
    forced = frozenset(
        id_ for id_ in wanted
        if options.force and (not targets or id_ in targets or graph.stages[id_].base in targets)
    )  # fmt: skip

    def make_dispatch(pending: Iterable[StageNode]) -> Dispatch:
        from .action import Project
        from .crew import LocalCrew
        from .dispatch import Dispatch
        from .fork import ForkServers, preloads

        modules = preloads(pending)
        threads = options.cpu or len(os.sched_getaffinity(0))
        servers = ForkServers(modules, store.new_tmp, threads=threads, early=early)
        project = Project(graph.root, graph.live, run_folder.name, options.keep_workdirs)
        keys = planner.environment

        def hire(audience: Audience) -> Crew:
            local = LocalCrew(project, store, keys, options, environ, audience, servers)
            if executor.name == "local":
                return local
            from .ray_crew import RayCrew

            return RayCrew(project, store, keys, options, executor, audience, local, modules)

        return Dispatch(graph, planner, store, options, emit, run_folder, environ, hire, interrupts)

    store.sweep_tmp()
    return _Run(
        graph, planner, wanted, forced, emit, make_dispatch, interrupts, fail_fast=options.fail_fast
    ).go()


def _executor(graph: Graph, options: RunOptions, environ: Mapping[str, str]) -> Executor:
    """Return where the stages run. Raises UsageError for an address without a cluster to be used.

    Ray sets `RAY_ADDRESS` for what it runs as a job itself.
    """
    name = options.executor or graph.executor.name
    if name != "ray":
        if options.ray_address:
            raise UsageError(f"the executor {name} has no address", fix="add --executor ray")
        return Executor(name)
    address = options.ray_address or graph.executor.address or environ.get("RAY_ADDRESS", "")
    return graph.executor._replace(name=name, address=address)


class _Run:
    """Walks the graph: decides each stage as soon as what it needs is there."""

    def __init__(
        self,
        graph: Graph,
        planner: Planner,
        wanted: tuple[str, ...],
        forced: frozenset[str],
        emit: Callable[[Event], None],
        make_dispatch: Callable[[Iterable[StageNode]], Dispatch],
        interrupts: Interrupts,
        *,
        fail_fast: bool,
    ) -> None:
        self._nodes = {id_: graph.stages[id_] for id_ in wanted}
        self._planner = planner
        self._forced = forced
        self._emit = emit
        self._make_dispatch = make_dispatch
        self._interrupts = interrupts
        self._dispatch: Dispatch | None = None
        self._fail_fast = fail_fast
        self._failed = ""
        self._results: dict[str, StageResult] = {}
        self._ended: set[str] = set()
        self._looked_up: set[int] = set()
        self._again: dict[str, list[str]] = {}
        self._tries: Counter[str] = Counter()
        self._made: dict[str, Mapping[str, Artifact]] = {}
        self._position = {id_: index for index, id_ in enumerate(wanted)}
        self._missing = {id_: len(node.upstream) for id_, node in self._nodes.items()}
        self._followers: dict[str, list[str]] = {id_: [] for id_ in wanted}
        for id_, node in self._nodes.items():
            for need in node.upstream:
                self._followers[need].append(id_)
        self._ready = [self._position[id_] for id_, count in self._missing.items() if not count]
        self._order = wanted

    def go(self) -> dict[str, StageResult]:
        try:
            while self._ready or (self._dispatch is not None and self._dispatch.busy):
                while self._ready:
                    self._look_up()
                    id_ = self._order[heapq.heappop(self._ready)]
                    self._begin(self._nodes[id_])
                if self._dispatch is not None and self._dispatch.busy:
                    for ended in self._dispatch.wait():
                        if isinstance(ended, StageResult):
                            self._end(ended)
                        else:
                            self._make_again(ended)
        finally:
            if self._dispatch is not None:
                self._dispatch.close()
        keys = {id_: r.key for id_, r in self._results.items() if r.state in ("ran", "hit", "healed")}
        self._planner.last.update(keys)
        return {id_: self._results[id_] for id_ in self._order}

    def _look_up(self) -> None:
        """Ask a shared cache for the records of all stages that are ready, before the first is decided."""
        if self._planner.shares and self._ready[0] not in self._looked_up:
            new = [position for position in self._ready if position not in self._looked_up]
            self._looked_up.update(new)
            nodes = [self._nodes[self._order[position]] for position in new]
            self._planner.look_up(nodes, self._made)

    def _begin(self, node: StageNode) -> None:
        again = [need for need in node.upstream if need not in self._results]
        if again:  # It was ready before they were found to be lost.
            self._missing[node.id] = len(again)
            for need in again:
                self._again[need].append(node.id)
            return
        refusal = self._refusal(node)
        if refusal is not None:
            self._end(refusal)
            return
        try:
            decision = self._planner.decide(node, self._made)
        except DeployRunnerError as error:
            self._end(StageResult(node.id, "failed", error=str(error), exit_code=error.exit_code))
            return
        if decision.state == "hit" and node.id not in self._forced:
            self._end(_hit(node, decision))
            return
        if self._dispatch is None:
            pending = [other for id_, other in self._nodes.items() if id_ not in self._results]
            self._dispatch = self._make_dispatch(pending)
        self._dispatch.add(node, decision, self._made, forced=node.id in self._forced)

    def _refusal(self, node: StageNode) -> StageResult | None:
        """Return why a stage can't be run at all, if it can't."""
        if self._interrupts.come:
            return StageResult(node.id, "interrupted", reason="the run was interrupted")
        for need in node.upstream:
            ended = self._results[need].state
            if ended == "interrupted":
                return StageResult(node.id, "interrupted", reason="the run was interrupted")
            if ended in ("failed", "skipped"):
                cause = need if ended == "failed" else self._results[need].reason.rpartition(" ")[2]
                return StageResult(node.id, "skipped", reason=f"it needs {cause}")
        if self._fail_fast and self._failed:
            return StageResult(node.id, "skipped", reason=f"--fail-fast: {self._failed}")
        return None

    def _make_again(self, lost: Lost) -> None:
        """Run the stages again whose outputs a stage needs and that are lost, then the stage."""
        node = self._nodes[lost.stage]
        self._tries[node.id] += 1
        if self._tries[node.id] > _TRIES:
            text = f"its input {lost.inputs[0].digest} is not available, though it was built again"
            self._end(StageResult(node.id, "failed", error=text, exit_code=1))
            return
        makers = {
            source.stage
            for source in node.inputs.values()
            if isinstance(source, RefSource) and self._made[source.stage].get(source.output) in lost.inputs
        }
        self._missing[node.id] = len(makers)
        for maker in makers:
            if maker not in self._again:
                self._planner.give_up(self._results.pop(maker).key)
                heapq.heappush(self._ready, self._position[maker])
            self._again.setdefault(maker, []).append(node.id)

    def _end(self, result: StageResult) -> None:
        self._results[result.id] = result
        self._made[result.id] = result.outputs
        self._emit(Event("stage-finished", time.time(), result.id, result=result))
        if result.state == "failed":
            self._failed = self._failed or result.id
        if result.state == "failed" and self._fail_fast and self._dispatch is not None:
            self._dispatch.drop_waiting("skipped", f"--fail-fast: {result.id}")
        followers = self._again.pop(result.id, []) if result.id in self._ended else self._followers[result.id]
        self._ended.add(result.id)
        for follower in followers:
            self._missing[follower] -= 1
            if not self._missing[follower]:
                heapq.heappush(self._ready, self._position[follower])


def _hit(node: StageNode, decision: Decision) -> StageResult:
    record = decision.record
    assert record is not None
    return StageResult(node.id, "hit", decision.key, record.outputs, record.figures)
