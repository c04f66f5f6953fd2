"""`plan`, `validate`, `explain` and `graph`: what a run would do, and why, without doing it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from ..errors import DeployRunnerError, counted
from ..report.folding import fold
from ..types import Json
from .advice import advice
from .options import JsonSwitch, Option, Selection

if TYPE_CHECKING:
    from ..api import Pipeline
    from ..engine.plan import Explanation

__all__ = ["Explain", "Graph", "Plan", "Validate"]

_MOST_NAMES = 6
"""In a line of `explain`."""


class Plan(NamedTuple):
    """Show what a run would do, and why."""

    selection: Annotated[Selection, "the stages to plan (default: all)"]
    values: Annotated[bool, Option("show every resolved value and where it came from")] = False
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print each stage's state and reason; with `values` the resolved values instead."""
        pipeline = self.selection.load()
        if self.values:
            _print_values(pipeline, as_json=self.json)
        else:
            self._print_actions(pipeline)
        return 0

    def _print_actions(self, pipeline: Pipeline) -> None:
        from .. import api

        actions = api.plan(pipeline, self.selection.names).actions
        pushes = [a.stage for a in actions if a.state == "converge"]
        drift = {stage: _drift(pipeline, stage) for stage in pushes}
        said = advice(pipeline.graph)
        if self.json:
            rows = [
                {"stage": a.stage, "state": a.state, "key": a.key, "reason": a.reason}
                | ({"remote": drift[a.stage]} if a.stage in drift else {})
                | ({"advice": said[a.stage]} if a.stage in said else {})
                for a in actions
            ]
            print(json.dumps({"target": pipeline.graph.target.get("name"), "actions": rows}))
            return
        # What an instance waits for is another instance: only the stage is told where many are one line.
        said_of = [(a.state, re.sub(r"\[[^]]*\]", "[…]", a.reason)) for a in actions]
        alone = {*drift, *said}
        lines = fold(
            [(a.stage, None if a.stage in alone else s) for a, s in zip(actions, said_of, strict=True)]
        )
        width = max((len(label) for label, _ in lines), default=0)
        for label, index in lines:
            action = actions[index]
            reason = action.reason if label == action.stage else said_of[index][1]
            print(f"{label:<{width}}  {action.state:<8} {reason}".rstrip())
            notes = [f"note: {line}" for line in said.get(action.stage, ())]
            for line in (*drift.get(action.stage, ()), *notes):
                print(f"{'':<{width}}    {line}")
        pending = sum(a.state != "hit" for a in actions)
        print(f"{counted(len(actions), 'stage')}: {pending} to run, {len(actions) - pending} up to date")


def _drift(pipeline: Pipeline, stage: str) -> list[str]:
    """Return what a live push would change on the remote, or why that can't be told."""
    from . import live

    try:
        findings = live.status(pipeline, [stage])[stage]
    except DeployRunnerError as error:
        return [f"the remote can't be read: {error}"]
    return [str(f) for f in findings if not f.in_sync] or ["the remote matches the pipeline"]


def _print_values(pipeline: Pipeline, *, as_json: bool) -> None:
    graph = pipeline.graph
    values: dict[str, Json] = {f"vars.{k}": v for k, v in graph.vars.items()}
    for id_, node in graph.stages.items():
        values |= {f"stages.{id_}.with.{k}": v for k, v in node.params.items()}
    values |= {f"target.{k}": v for k, v in graph.target.items()}
    rows = {path: (value, _origin(graph.origins, path)) for path, value in values.items()}
    if as_json:
        print(json.dumps({p: {"value": v, "origin": o} for p, (v, o) in rows.items()}))
        return
    for path, (value, origin) in rows.items():
        print(f"{path} = {json.dumps(value, ensure_ascii=False)}  ({origin})")


def _origin(origins: object, path: str) -> str:
    assert hasattr(origins, "get")
    base = path
    if path.startswith("stages.") and "[" in path:
        head, _, tail = path.partition("[")
        base = head + tail.partition("]")[2]
    while base:
        if found := origins.get(base):
            return str(found)
        base = base.rpartition(".")[0]
        if base.endswith(".with") or "." not in base:
            break
    return "default"


class Validate(NamedTuple):
    """Check a pipeline and report all its errors."""

    selection: Selection
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Say that the pipeline and its target are valid. Raises SpecError where they aren't."""
        from ..engine.targets import require_target

        pipeline = self.selection.load()
        graph = pipeline.graph
        require_target(graph, self.selection.names, pipeline.environ)
        if self.json:
            print(
                json.dumps(
                    {"valid": True, "name": graph.name, "stages": list(graph.stages)}, ensure_ascii=False
                )
            )
        else:
            print(f"{graph.pipeline}: valid, {counted(len(graph.stages), 'stage')}")
        return 0


class Explain(NamedTuple):
    """Explain why stages are hits or misses."""

    selection: Annotated[Selection, "the stages to explain (default: all)"]
    json: JsonSwitch = False

    def __call__(self) -> int:
        """Print the verdict on each stage and every component that changed."""
        names = dict.fromkeys(self.selection.names)
        pipeline = self.selection.load()
        stages = pipeline.graph.stages
        found = [
            one for one in pipeline.planner().explanations(list(names) or None)
            if not names or one.stage in names or stages[one.stage].base in names
        ]  # fmt: skip
        if self.json:
            rows = [
                {"stage": one.stage, "state": one.state, "reason": one.reason,
                 "changes": [str(change) for change in one.changes]}
                for one in found
            ]  # fmt: skip
            print(json.dumps(rows, ensure_ascii=False))
            return 0
        for line in _explained(found) if names else _folded(found):
            print(line)
        return 0


def _explained(found: Iterable[Explanation]) -> Iterator[str]:
    for one in found:
        yield f"{one.stage}: {one.state}: {one.reason}".rstrip(": ")
        for change in one.changes:
            yield f"  {change}"


def _folded(found: Iterable[Explanation]) -> Iterator[str]:
    """Yield the same, with one line for stages in a row of which the same is said."""

    def alike(one: Explanation) -> tuple[str, ...]:
        if one.changes:
            return (one.stage, "")
        reason = "nothing changed" if one.state == "hit" else one.reason
        return (f"{one.state}: {f'for {_waited_for(one.causes)}' if one.causes else reason}",)

    for said, group in groupby(found, alike):
        row = list(group)
        if len(said) == 1:
            yield f"{_some([one.stage for one in row])}: {said[0]}"
        else:
            yield from _explained(row)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _waited_for(causes: Sequence[str]) -> str:
    from ..engine.plan import MOST_CAUSES

    if len(causes) <= MOST_CAUSES:
        return _some(causes)
    return f"{', '.join(causes[:_MOST_NAMES])} and more than {MOST_CAUSES - _MOST_NAMES} others"


class Graph(NamedTuple):
    """Draw the stages and their edges."""

    selection: Selection
    format: Annotated[
        Literal["text", "mermaid", "dot"], Option("the form of the drawing (default: text)")
    ] = "text"

    def __call__(self) -> int:
        """Print the drawing."""
        from ..pipeline.render import render

        print(render(self.selection.load().graph, self.format))
        return 0
