"""Whether a live target has what its pushes need: told at once, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import Problem, SpecError
from ..pipeline.graph import select
from ..types import Graph

__all__ = ["require_target", "target_problems"]


def require_target(graph: Graph, stages: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raise SpecError with all that the target lacks for the pushes among these stages (all, if none)."""
    if problems := target_problems(graph, stages, environ):
        raise SpecError(problems)


def target_problems(graph: Graph, stages: Sequence[str], environ: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with a live target: one problem for all that is missing, one a wrong value."""
    if not graph.live:
        return []
    from ..registry import load_class

    missing: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for id_ in select(graph, stages):
        node = graph.stages[id_]
        if not node.converges:
            continue
        cls = load_class(node.module, node.class_name, node.stage_dir)
        for setting, wrong in cls().check_target(node.params, graph.target, environ).items():
            if wrong:
                place = graph.origins.get(f"target.{setting}", str(node.mark))
                problems.append(Problem(f"target.{setting}: {wrong}", place))
            else:
                missing.setdefault(setting, []).append(id_)
    if missing:
        problems.insert(0, _missing(graph, missing))
    return list(dict.fromkeys(problems))


def _missing(graph: Graph, missing: Mapping[str, Sequence[str]]) -> Problem:
    stages = list(dict.fromkeys(id_ for ids in missing.values() for id_ in ids))
    names = _listed([f"target.{setting}" for setting in missing])
    rooms: dict[str, list[str]] = {}
    for setting in missing:
        room, _, name = setting.rpartition(".")
        rooms.setdefault(room, []).append(f"{name}: …")
    lines = ", ".join(
        f"{room}: {{{', '.join(names)}}}" if room else ", ".join(names) for room, names in rooms.items()
    )
    return Problem(
        f"the target {graph.target.get('name')} doesn't set {names}, which {_listed(stages)} "
        f"need{'s' if len(stages) == 1 else ''}",
        graph.pipeline, fix=f"add `target: {{{lines}}}`",
    )  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
