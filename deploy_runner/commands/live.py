"""`status`, `rollback` and `promote`: what a pipeline's pushes have done to their live remotes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from ..errors import UsageError
from ..types import Finding, Graph, RefSource, StageNode
from .downloads import Needed, bring
from .options import JsonSwitch, Option, Selection, to_stderr

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.plan import Decision

__all__ = ["Promote", "Rollback", "Status", "credentials", "promote", "rollback", "status"]

Log = Callable[[str], None]


class Status(NamedTuple):
    """Compare the deployment with the pipeline."""

    selection: Annotated[Selection, "the push stages to check (default: all)"]
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print every fact about the remote beside what the pipeline says; exit 1 where they differ."""
        found = status(self.selection.load(), self.selection.names, log=to_stderr)
        in_sync = all(f.in_sync for findings in found.values() for f in findings)
        if self.json:
            stages = {s: [{**f._asdict(), "in_sync": f.in_sync} for f in rows] for s, rows in found.items()}
            print(json.dumps({"in_sync": in_sync, "stages": stages}, ensure_ascii=False))
            return 0 if in_sync else 1
        for stage, findings in found.items():
            print(f"{stage}:")
            for finding in findings:
                print(f"  {'=' if finding.in_sync else '≠'} {finding}")
        print("in sync" if in_sync else "the deployment differs from the pipeline")
        return 0 if in_sync else 1


class Rollback(NamedTuple):
    """Restore what a push deployed before."""

    selection: Annotated[Selection, "the push stage"]
    to: Annotated[str, Option("the start of a digest (default: the one before)", "DIGEST")] = ""
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Have the push bring it back, and print what it said."""
        name = _one_push(self.selection, "rollback")
        _print_done(rollback(self.selection.load(), name, self.to, log=to_stderr), as_json=self.json)
        return 0


class Promote(NamedTuple):
    """Approve the version that a push registered."""

    selection: Annotated[Selection, "the push stage"]
    status: Annotated[
        Literal["Approved", "Rejected", "PendingManualApproval"],
        Option("the approval status to set (default: Approved)"),
    ] = "Approved"
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Have the push set the status, and print what it said."""
        name = _one_push(self.selection, "promote")
        _print_done(promote(self.selection.load(), name, self.status, log=to_stderr), as_json=self.json)
        return 0


def _one_push(selection: Selection, verb: str) -> str:
    if len(selection.names) != 1:
        raise UsageError(
            f"{verb} needs the name of one push stage", fix=f"`deploy-runner {verb} STAGE --config FILE`"
        )
    return selection.names[0]


def _print_done(said: str, *, as_json: bool) -> None:
    print(json.dumps({"done": said}, ensure_ascii=False) if as_json else said)


def _silent(line: str) -> None:
    return


def status(
    pipeline: Pipeline,
    stages: Sequence[str] = (),
    *,
    log: Log = _silent,
) -> dict[str, list[Finding]]:
    """Return what the remote has, by the pushes among `stages` (all, if empty); change nothing.

    Raises UsageError for a dry run, which leaves no remote, and StageError where a push can't tell.
    """
    _require_live(pipeline, stages)
    found: dict[str, list[Finding]] = {}
    planner = pipeline.planner()
    wanted = [node.id for node in _pushes(pipeline.graph, stages)]
    with pipeline.store.hold():
        decisions = list(planner.decisions(wanted))
        keys = {node.id: decision.key for node, decision, _ in decisions if decision is not None}
        for node, decision, waiting in decisions:
            if node.id not in wanted:
                continue
            if decision is None:
                found[node.id] = [Finding("inputs", "made", f"{', '.join(waiting)} not built yet")]
                continue
            _bring_inputs(pipeline, node, decision, keys)
            rows = _ask(pipeline, node, decision, {"verb": "status"}, log)
            found[node.id] = [Finding(*row) for row in rows]
    return found


def credentials(pipeline: Pipeline, stage: str) -> str:
    """Return what `stage` would authenticate by, as its worker finds it. Raises what it raises for a lack."""
    (node,) = _pushes(pipeline.graph, [stage])
    with pipeline.store.hold():
        return str(_ask(pipeline, node, None, {"verb": "credentials"}, _silent))


def rollback(pipeline: Pipeline, stage: str, to: str = "", *, log: Log = _silent) -> str:
    """Restore what `stage` deployed before, or the digest that begins with `to`; describe the result."""
    _require_live(pipeline, [stage])
    (node,) = _pushes(pipeline.graph, [stage])
    with pipeline.store.hold():
        return str(_ask(pipeline, node, None, {"verb": "rollback", "to": to}, log))


def promote(
    pipeline: Pipeline,
    stage: str,
    status: str = "Approved",
    *,
    log: Log = _silent,
) -> str:
    """Set the approval status of what `stage` has registered; say of what."""
    _require_live(pipeline, [stage])
    (node,) = _pushes(pipeline.graph, [stage])
    with pipeline.store.hold():
        decisions = list(pipeline.planner().decisions([stage]))
        keys = {n.id: d.key for n, d, _ in decisions if d is not None}
        decision = next(d for n, d, _ in decisions if n is node)
        if decision is None:
            raise UsageError(
                f"the inputs of {stage} have not been built yet", fix=f"deploy-runner run {stage}"
            )
        _bring_inputs(pipeline, node, decision, keys)
        return str(_ask(pipeline, node, decision, {"verb": "promote", "status": status}, log))


def _require_live(pipeline: Pipeline, stages: Sequence[str]) -> None:
    """Raise UsageError for a dry run, SpecError where the target lacks what these pushes need."""
    from ..engine.targets import require_target

    graph = pipeline.graph
    if not graph.live:
        raise UsageError(
            f"the target {graph.target.get('name', 'dry-run')} is a dry run, which has no remote state",
            fix="use a live target, e.g. --config configs/production.yaml",
        )
    require_target(graph, [node.id for node in _pushes(graph, stages)], pipeline.environ)


def _pushes(graph: Graph, stages: Sequence[str]) -> list[StageNode]:
    pushes = [node for node in graph.stages.values() if node.converges]
    for name in stages:
        if name not in graph.stages:
            raise UsageError(f"there is no stage {name!r}", fix="`deploy-runner plan` lists them")
        if not graph.stages[name].converges:
            known = ", ".join(node.id for node in pushes) or "none"
            raise UsageError(f"{name} ({graph.stages[name].uses}) is not a push stage",
                             fix=f"the push stages are {known}")  # fmt: skip
    return [node for node in pushes if not stages or node.id in stages]


def _bring_inputs(pipeline: Pipeline, node: StageNode, decision: Decision, keys: Mapping[str, str]) -> None:
    """Have what the stage reads of earlier ones here. Raises StoreError for what isn't available."""
    path = shlex.quote(pipeline.graph.pipeline)
    bring(pipeline.store, [
        Needed(decision.inputs[name], f"{source.stage}.{source.output}", keys[source.stage],
               f"deploy-runner run {path} {shlex.quote(source.stage)}")
        for name, source in node.inputs.items() if isinstance(source, RefSource)
    ])  # fmt: skip


def _ask(
    pipeline: Pipeline,
    node: StageNode,
    decision: Decision | None,
    question: Mapping[str, str],
    log: Log,
) -> Any:
    from ..engine.execute.ask import ask

    return ask(
        pipeline.graph, pipeline.planner(), pipeline.store, node, decision, question,
        environ=pipeline.environ, log=log,
    )  # fmt: skip
