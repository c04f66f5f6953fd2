"""Ask the pushes of a pipeline about their live remotes, and have them changed back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..types import Finding, Graph, StageNode

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.plan import Decision

__all__ = ["promote", "rollback", "status"]

Log = Callable[[str], None]


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
    _require_live(pipeline.graph)
    found: dict[str, list[Finding]] = {}
    planner = pipeline.planner()
    wanted = [node.id for node in _pushes(pipeline.graph, stages)]
    with pipeline.store.hold():
        for node, decision, waiting in list(planner.decisions(wanted)):
            if node.id not in wanted:
                continue
            if decision is None:
                found[node.id] = [Finding("inputs", "made", f"{', '.join(waiting)} not built yet")]
                continue
            rows = _ask(pipeline, node, decision, {"verb": "status"}, log)
            found[node.id] = [Finding(*row) for row in rows]
    return found


def rollback(pipeline: Pipeline, stage: str, to: str = "", *, log: Log = _silent) -> str:
    """Restore what `stage` deployed before, or the digest that begins with `to`; describe the result."""
    _require_live(pipeline.graph)
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
    _require_live(pipeline.graph)
    (node,) = _pushes(pipeline.graph, [stage])
    with pipeline.store.hold():
        decision = next(d for n, d, _ in list(pipeline.planner().decisions([stage])) if n is node)
        if decision is None:
            raise UsageError(
                f"the inputs of {stage} have not been built yet", fix=f"deploy-runner run {stage}"
            )
        return str(_ask(pipeline, node, decision, {"verb": "promote", "status": status}, log))


def _require_live(graph: Graph) -> None:
    if not graph.live:
        raise UsageError(
            f"the target {graph.target.get('name', 'dry-run')} is a dry run, which has no remote state",
            fix="use a live target, e.g. --config configs/production.yaml",
        )


def _pushes(graph: Graph, stages: Sequence[str]) -> list[StageNode]:
    pushes = [node for node in graph.stages.values() if node.converges]
    for name in stages:
        if name not in graph.stages:
            raise UsageError(f"there is no stage {name!r}", fix="`deploy-runner plan` lists them")
        if not graph.stages[name].converges:
            raise UsageError(f"{name} ({graph.stages[name].uses}) is not a push stage")
    return [node for node in pushes if not stages or node.id in stages]


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
