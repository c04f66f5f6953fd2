"""`max_parallel`: how many instances of a stage run at the same time, and what it doesn't change."""

from __future__ import annotations

import json

from deploy_runner import api
from deploy_runner.types import Event, RunOptions
from tests.conftest import Project

STAGE = (
    "{}: {{uses: run.command, matrix: {{n: [1, 2, 3, 4, 5]}}, {} outputs: {{o: o}}, "
    "with: {{command: 'echo {} ${{{{ matrix.n }}}} > $OUTPUT_O'}}}}"
)


def most_at_once(events: list[Event], base: str) -> int:
    """Return how many instances of a stage were started and not yet finished, at most."""
    running, most = 0, 0
    for event in events:
        if event.stage.startswith(f"{base}["):
            running += {"stage-started": 1, "stage-finished": -1}.get(event.kind, 0)
            most = max(most, running)
    return most


def test_no_more_instances_of_a_stage_run_at_once_and_others_go_on_beside_it(project: Project) -> None:
    project.pipeline("\n".join([
        STAGE.format("one", "max_parallel: 1,", "a"), STAGE.format("two", "max_parallel: 2,", "b"),
        STAGE.format("free", "", "c"),
    ]))  # fmt: skip
    events: list[Event] = []
    pipeline = api.load(project.folder / "pipeline.yaml")
    record = api.run(pipeline, options=RunOptions(cpu=16), on_event=events.append)
    assert {stage["state"] for stage in record.stages.values()} == {"ran"}
    assert len(record.stages) == 15
    # All that may start do so before the first one is waited for.
    assert [most_at_once(events, base) for base in ("one", "two", "free")] == [1, 2, 5]


def test_the_limit_and_the_order_of_include_are_in_no_key(project: Project) -> None:
    def keys(matrix: str, more: str) -> dict[str, str]:
        project.pipeline(
            f"s: {{uses: run.command, matrix: {{{matrix}}}, {more} outputs: {{o: o}}, "
            "with: {command: 'echo ${{ matrix.n }} ${{ matrix.m }} > $OUTPUT_O'}}\n"
            "t: {uses: run.command, matrix: '${{ stages.s.matrix }}', "
            "inputs: {i: '${{ stages.s.outputs.o }}'}, outputs: {o: o}, with: {command: 'cp $INPUT_I $OUTPUT_O'}}"
        )
        project.run()
        plan = json.loads(project.cli("plan", "--json").stdout)
        assert {action["state"] for action in plan["actions"]} == {"hit"}
        return {action["stage"]: action["key"] for action in plan["actions"]}

    first = keys("n: [1, 2], include: [{n: 1, m: 3}, {n: 2, m: 4}, {n: 9, m: 9}, {n: 8, m: 8}]", "")
    other = keys(
        "n: [2, 1], include: [{n: 8, m: 8}, {n: 2, m: 4}, {n: 1, m: 3}, {n: 9, m: 9}]", "max_parallel: 1,"
    )
    assert set(first) == {f"{base}[{label}]" for base in "st" for label in ("1", "2", "9,9", "8,8")}
    assert first == other
    assert project.run()["hit"] == 8


def test_many_instances_in_the_same_state_are_one_line(project: Project) -> None:
    many = f"matrix: {{n: [{', '.join(map(str, range(21)))}]}},"
    own = STAGE.replace("matrix: {{n: [1, 2, 3, 4, 5]}},", "{}")
    project.pipeline("\n".join([
        own.format("many", many, "", "a"), own.format("few", "matrix: {n: [1]},", "", "b"),
        own.format("after", "matrix: '${{ stages.many.matrix }}',", "inputs: {i: '${{ stages.many.outputs.o }}'},", "c"),
    ]))  # fmt: skip
    lines = project.cli("plan").stdout.splitlines()
    assert lines[0].split() == ["many[21", "instances]", "miss", "not", "built", "before"]
    assert lines[1].split() == ["few[1]", "miss", "not", "built", "before"]
    assert lines[2].split() == ["after[21", "instances]", "waits", "for", "many[…]"]
    assert lines[3:] == ["43 stages: 43 to run, 0 up to date"]
    assert len(json.loads(project.cli("plan", "--json").stdout)["actions"]) == 43
