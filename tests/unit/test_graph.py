"""The order of stages, cycles, and the choice of targets."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_runner.errors import UsageError
from deploy_runner.pipeline.graph import find_cycle, select, topological_order
from tests.conftest import Project
from tests.unit.compiling import compile_


@pytest.mark.parametrize(
    ("needs", "order"),
    [
        pytest.param({"b": ["a"], "a": [], "c": ["b"]}, ["a", "b", "c"], id="what is needed comes first"),
        pytest.param({"c": [], "a": [], "b": []}, ["c", "a", "b"], id="else the file's order is kept"),
        pytest.param(
            {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}, ["a", "b", "c", "d"], id="a diamond"
        ),
        pytest.param({"a": ["a"]}, [], id="a stage that needs itself is left out"),
        pytest.param({"a": ["b"], "b": ["a"], "c": []}, ["c"], id="a cycle is left out"),
    ],
)
def test_the_order(needs: dict[str, list[str]], order: list[str]) -> None:
    assert topological_order(needs) == order


def test_ten_thousand_stages_in_a_row_are_ordered() -> None:
    needs = {str(i): [str(i - 1)] if i else [] for i in range(10_000)}
    assert topological_order(dict(reversed(needs.items()))) == list(needs)
    assert find_cycle(needs) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_an_order_or_a_cycle_exists_and_is_right(edges: list[tuple[int, int]]) -> None:
    needs: dict[str, list[str]] = {str(i): [] for i in range(13)}
    for node, need in edges:
        needs[str(node)].append(str(need))
    order, cycle = topological_order(needs), find_cycle(needs)
    assert bool(cycle) == (len(order) < 13)
    position = {node: index for index, node in enumerate(order)}
    assert all(position[need] < position[node] for node in order for need in needs[node])
    assert all(need in needs[node] for node, need in pairwise(cycle))
    assert cycle[:1] == cycle[-1:]


def test_a_target_may_be_a_stage_or_an_instance(project: Project) -> None:
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}}
        b: {uses: text.upper, matrix: {m: [x, y]}, inputs: {text: "${{ stages.a.outputs.text }}"}}
        c: {uses: text.upper, inputs: {text: in.txt}}
        """
    )
    graph = compile_(project)
    assert select(graph, ["b"]) == ("a", "b[x]", "b[y]")
    assert select(graph, ["b[y]"]) == ("a", "b[y]")
    assert select(graph, ["b[y]", "c"]) == ("a", "b[y]", "c")
    assert select(graph, ["c", "a"]) == ("a", "c")
    assert select(graph, None) == select(graph, []) == ("a", "b[x]", "b[y]", "c")


def test_an_unknown_target_is_refused_with_the_nearest_name_or_the_first_twelve(project: Project) -> None:
    stages = [f"stage{i}" for i in range(13)]
    project.pipeline("\n".join(f"{name}: {{uses: text.upper, inputs: {{text: in.txt}}}}" for name in stages))
    graph = compile_(project)
    said = re.escape(f"{graph.pipeline} has no stage 'stage99' (did you mean 'stage9'?)")
    with pytest.raises(UsageError, match=rf"\A{said}\Z"):
        select(graph, ["stage1", "stage99"])
    said = re.escape(f"{graph.pipeline} has no stage '?' (the stages are {', '.join(stages[:12])})")
    with pytest.raises(UsageError, match=rf"\A{said}\Z"):
        select(graph, ["?"])
