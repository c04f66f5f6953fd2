"""What a run with nothing to do, a plan and an explanation cost: so much for each stage, however many there are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from deploy_runner import api
from deploy_runner.store.actions import ActionRecord
from deploy_runner.types import Artifact
from tests.conftest import Project
from tests.unit.counting import calls_of

_CALLS = 200
"""What deciding, recording and showing one more stage that is a hit may call."""


def in_a_row(project: Project, n: int) -> api.Pipeline:
    own = "{{uses: run.command, inputs: {{i: {}}}, outputs: {{o: o}}, with: {{command: x {}}}}}"
    sources = ["in.txt", *(f"'${{{{ stages.s{i}.outputs.o }}}}'" for i in range(n - 1))]
    project.pipeline("\n".join(f"s{i}: {own.format(source, i)}" for i, source in enumerate(sources)))
    return api.load(project.folder / "pipeline.yaml")


def made(pipeline: api.Pipeline) -> api.Pipeline:
    """Return the pipeline with a record of each stage in its store, as a run leaves them."""
    planner, store = pipeline.planner(), pipeline.store
    outputs: dict[str, Mapping[str, Artifact]] = {}
    for id_, node in pipeline.graph.stages.items():
        decision = planner.decide(node, outputs)
        path = store.new_tmp() / id_
        path.write_text(f"made by {id_}")
        outputs[id_] = {"o": store.ingest(path)}
        store.records.put(ActionRecord(decision.key, node.uses, outputs[id_], {}, decision.preimage))
    planner.last.update({})
    return pipeline


def calls(project: Project, n: int) -> tuple[int, int]:
    """Return the calls of a run and of a plan of n stages that are hits."""
    pipeline = made(in_a_row(project, n))
    states = {entry["state"] for entry in api.run(pipeline).stages.values()}
    assert states == {"hit"}

    def again() -> api.Pipeline:
        return api.load(project.folder / "pipeline.yaml")

    return calls_of(lambda: api.run(again())), calls_of(lambda: api.plan(again()))


def test_a_stage_that_is_a_hit_costs_the_same_among_many(project: Project) -> None:
    once, tenfold = calls(project, 20), calls(project, 200)
    assert (tenfold[0] - once[0]) / 180 < _CALLS
    assert (tenfold[1] - once[1]) / 180 < _CALLS


@pytest.mark.slow
def test_a_stage_that_is_a_hit_costs_the_same_among_ten_thousand(project: Project) -> None:
    once, many = calls(project, 1000), calls(project, 10_000)
    assert (many[0] - once[0]) / 9000 < _CALLS
    assert (many[1] - once[1]) / 9000 < _CALLS


def waiting(project: Project, n: int) -> api.Pipeline:
    """Return n stages, one that waits for all of them, and n that wait for this one and for one of the first."""
    matrix = f"matrix: {{x: [{','.join(map(str, range(n)))}]}}"
    project.pipeline(f"""
        a: {{uses: run.command, {matrix}, outputs: {{o: o}}, with: {{command: "x ${{{{ matrix.x }}}}"}}}}
        b: {{uses: run.command, needs: [a], outputs: {{o: o}}, with: {{command: x}}}}
        c: {{uses: run.command, needs: [b], matrix: "${{{{ stages.a.matrix }}}}", outputs: {{o: o}},
            inputs: {{i: "${{{{ stages.a.outputs.o }}}}"}}, with: {{command: "y ${{{{ matrix.x }}}}"}}}}
    """)
    return api.load(project.folder / "pipeline.yaml")


def test_what_all_stages_of_a_matrix_wait_for_is_explained_in_proportion(project: Project) -> None:
    def said(n: int) -> tuple[int, int]:
        planner = waiting(project, n).planner()
        found = list(planner.explanations(["c"]))
        assert (found[0].reason, len(found)) == ("not built before", 2 * n + 1)
        work = calls_of(lambda: list(planner.explanations(["c"])))
        return work, sum(len(one.reason) + len(one.causes) for one in found)

    once, tenfold = said(110), said(1100)
    assert tenfold[0] < 12 * once[0]
    assert tenfold[1] < 12 * once[1]
    lines = project.cli("explain", "c[7]", "c[8]").stdout.splitlines()
    assert [line.partition(": not built")[0] for line in lines] == [
        f"c[{i}]: waits: for a[{i}]" for i in (7, 8)
    ]
    assert all(line.endswith("a[99]: not built before; and others") for line in lines)
    folded = project.cli("explain").stdout.splitlines()[-1]
    assert folded.endswith(": waits: for a[1099], a[0], a[1], a[2], a[3], a[4] and more than 94 others")


def test_few_causes_are_all_named(project: Project) -> None:
    waiting(project, 8)
    assert project.cli("explain").stdout.splitlines()[:2] == [
        "a[0], a[1], a[2], a[3], a[4], a[5] and 2 more: miss: not built before",
        "b, c[0]: waits: for a[0], a[1], a[2], a[3], a[4], a[5] and 2 more",
    ]
