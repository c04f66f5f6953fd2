"""A matrix: `include` and `exclude` as GitHub documents them, the names of instances, pairs, and limits."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy_runner.errors import SpecError
from deploy_runner.pipeline.drafts import Ground
from deploy_runner.pipeline.expressions import Scope
from deploy_runner.pipeline.loader import load_yaml
from deploy_runner.pipeline.matrices import expand
from deploy_runner.pipeline.overlay import Document
from deploy_runner.pipeline.partners import Partners
from deploy_runner.registry import Registry
from deploy_runner.types import Graph, RefSource
from tests.conftest import Project
from tests.unit.compiling import compile_

Row = dict[str, Any]


def stage(name: str, matrix: Any, more: str = "", command: str = "x") -> str:
    return (
        f"{name}: {{uses: run.command, matrix: {json.dumps(matrix)}, outputs: {{o: o}}, {more}"
        f"with: {{command: '{command}'}}}}"
    )


def instances(project: Project, matrix: Any) -> dict[str, Row]:
    project.pipeline(stage("s", matrix))
    return {id_: dict(node.matrix) for id_, node in compile_(project).stages.items()}


def refused(project: Project, matrix: Any, **options: Any) -> list[str]:
    project.pipeline(stage("s", matrix), **options)
    with pytest.raises(SpecError, match=r"pipeline\.yaml:\d+:\d+: ") as caught:
        compile_(project)
    return [p.message + (f" ({p.fix})" if p.fix else "") for p in caught.value.problems]


def as_github_says(axes: dict[str, list[Any]], exclude: list[Row], include: list[Row]) -> list[Row]:
    """Return the combinations, word for word as GitHub's page on matrices tells them, in no clever way."""
    rows = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())] if axes else []
    rows = [row for row in rows if not any(all(row[k] == e[k] for k in e) for e in exclude)]
    original = [dict(row) for row in rows]
    new: list[Row] = []
    for entry in include:
        added = False
        for row, was in zip(rows, original, strict=True):
            if all(key not in was or was[key] == value for key, value in entry.items()):
                row.update(entry)
                added = True
        if not added:
            new.append(dict(entry))
    return rows + new


VALUES = st.sampled_from([1, 2, 3])
AXES = st.dictionaries(
    st.sampled_from("abc"), st.lists(VALUES, min_size=1, max_size=3, unique=True), max_size=3
)
ENTRIES = st.lists(st.dictionaries(st.sampled_from("abcxy"), VALUES, min_size=1, max_size=4), max_size=5)


def expanded(matrix: Row) -> tuple[list[tuple[str, Row]] | None, list[str]]:
    """Return the labels and values of a matrix, and what is wrong with it."""
    tree = load_yaml(json.dumps({"matrix": matrix}), "p.yaml")
    ground = Ground(Document(tree, (), {}), Path("p.yaml"), {}, Registry(Path()))
    ground.max_instances = 1000
    found = expand(ground, "s", tree.value["matrix"], Scope("", lambda path: None, {}))
    return list(found.items()) if found is not None else None, [p.message for p in ground.problems]


@settings(deadline=None, max_examples=50)
@given(AXES, ENTRIES, ENTRIES, st.randoms(use_true_random=False))
def test_include_and_exclude_are_as_github_documents_them(
    axes: dict[str, list[int]], exclude: list[Row], include: list[Row], random: Any
) -> None:
    exclude = [known for e in exclude if (known := {k: v for k, v in e.items() if k in axes})]
    expected = as_github_says(axes, exclude, include)
    matrix = {**axes, "exclude": exclude, "include": include}
    found, problems = expanded(matrix)
    if found is None:
        assert ("twice" if expected else "has no combination left") in problems[0]
        return
    assert [values for _, values in found] == expected
    random.shuffle(exclude)
    assert expanded(matrix) == (found, [])
    # In another order what is added may differ, but the same values are the same instance.
    random.shuffle(include)
    other = {json.dumps(values, sort_keys=True): label for label, values in expanded(matrix)[0] or ()}
    labels = {json.dumps(values, sort_keys=True): label for label, values in found}
    assert all(other.get(values, label) == label for values, label in labels.items())


def test_the_example_of_githubs_page_gives_its_six_combinations(project: Project) -> None:
    found = instances(project, {
        "fruit": ["apple", "pear"],
        "animal": ["cat", "dog"],
        "include": [
            {"color": "green"},
            {"color": "pink", "animal": "cat"},
            {"fruit": "apple", "shape": "circle"},
            {"fruit": "banana"},
            {"fruit": "banana", "animal": "cat"},
        ],
    })  # fmt: skip
    assert found == {
        "s[apple,cat]": {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
        "s[apple,dog]": {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
        "s[pear,cat]": {"fruit": "pear", "animal": "cat", "color": "pink"},
        "s[pear,dog]": {"fruit": "pear", "animal": "dog", "color": "green"},
        "s[banana]": {"fruit": "banana"},
        "s[banana,cat]": {"fruit": "banana", "animal": "cat"},
    }
    only = instances(project, {"include": [{"site": "a", "zone": 1}, {"zone": 2, "site": "b"}]})
    assert only == {"s[a,1]": {"site": "a", "zone": 1}, "s[2,b]": {"zone": 2, "site": "b"}}
    excluded = instances(project, {
        "os": ["linux", "mac"], "version": [12, 14], "environment": ["staging", "production"],
        "exclude": [{"os": "mac", "version": 12, "environment": "production"}, {"os": "linux", "version": 12}],
    })  # fmt: skip
    assert list(excluded) == [
        "s[linux,14,staging]", "s[linux,14,production]", "s[mac,12,staging]", "s[mac,14,staging]",
        "s[mac,14,production]",
    ]  # fmt: skip


def test_values_are_what_they_are(project: Project) -> None:
    found = instances(
        project, {"x": [1, True, "true!"], "exclude": [{"x": True}], "include": [{"x": 1, "y": 0}]}
    )
    assert found == {"s[1]": {"x": 1, "y": 0}, "s[true_]": {"x": "true!"}}
    long = instances(project, {"x": ["é" * 200, "é" * 201], "y": ["/" * 110, "../"]})
    assert len(long) == 4
    assert all(len(id_.encode()) < 150 and "/" not in id_ for id_ in long)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ({"x": [1], "exclude": [{"x": 1}]}, "the matrix of 's' has no combination left (remove an entry of `exclude`, or add values)"),
        ({"include": {"x": 1}}, "`include` of a matrix must be a list of mappings of names to values"),
        ({"include": [{}]}, "`include` of a matrix must be a list of mappings of names to values"),
        ({"include": [{"x": [1]}]}, "`include` of a matrix must be a list of mappings of names to values"),
        ({"axis": [1], "exclude": [{"axs": 1}]}, "the matrix has no axis 'axs' to exclude (did you mean 'axis'?)"),
        ({"x": [{"a": 1}]}, "the values of the matrix axis 'x' must not be collections (use `include` for values that belong together)"),
        ({"x": []}, "the matrix axis 'x' must be a list of values"),
        ({"include": [{"x": 1}, {"x": 1}]}, "the matrix of 's' gives s[1] twice"),
        ("${{ stages.s.matrix }}", "the matrix of 's' is that of other stages in a cycle"),
        ("${{ fromJSON(x) }}", "'${{ fromJSON(x) }}' is not a mapping of axes to values (or ${{ stages.NAME.matrix }} of another stage)"),
    ],
)  # fmt: skip
def test_a_wrong_matrix_is_refused_in_one_sentence(project: Project, matrix: Any, said: str) -> None:
    assert refused(project, matrix) == [said]


def test_a_value_that_only_some_instances_have_is_asked_for(project: Project) -> None:
    matrix: dict[str, list[Any]] = {"os": ["linux", "mac"], "include": [{"os": "mac", "sdk": 1}]}
    project.pipeline(stage("s", matrix, command="${{ matrix.os }} ${{ matrix.sdk }}"))
    message = 'matrix.sdk is not defined in the instance of {os: "linux"} (begin `include` with a value for all: `- sdk: …`)'
    with pytest.raises(SpecError, match=re.escape(message)):
        compile_(project)
    matrix["include"].insert(0, {"sdk": 0})
    project.pipeline(stage("s", matrix, command="${{ matrix.os }} ${{ matrix.sdk }}"))
    assert [node.params["command"] for node in compile_(project).stages.values()] == ["linux 0", "mac 1"]


def sources(graph: Graph, id_: str) -> list[str]:
    return [source.stage for source in graph.stages[id_].inputs.values() if isinstance(source, RefSource)]


def test_instances_are_paired_by_what_they_share_and_exactly_if_they_can(project: Project) -> None:
    take = "inputs: {i: '${{ stages.a.outputs.o }}'}, "
    matrix = {"x": [1, 2], "include": [{"x": 1, "y": 5}, {"x": 3}, {"x": 3, "y": 7}]}
    project.pipeline("\n".join([
        stage("a", matrix), stage("b", "${{ stages.a.matrix }}", take), stage("c", "${{ stages.b.matrix }}", take),
        stage("d", {"x": [1, 2], "z": [8, 9]}, take),
    ]))  # fmt: skip
    graph = compile_(project)
    for label in ("1", "2", "3", "3,7"):
        assert sources(graph, f"b[{label}]") == sources(graph, f"c[{label}]") == [f"a[{label}]"]
    assert sources(graph, "d[2,9]") == ["a[2]"]


@given(
    st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES), unique_by=json.dumps),
    st.dictionaries(st.sampled_from("xyz"), VALUES),
)
def test_partners_are_found_as_by_looking_at_all(rows: list[Row], values: Row) -> None:
    known = {json.dumps(row): row for row in rows}
    agreeing = [id_ for id_, row in known.items() if all(row[n] == values[n] for n in row if n in values)]
    exact = [id_ for id_, row in known.items() if row == values]
    assert Partners(known).of(values) == (exact[:1] if exact else agreeing) or len(exact) > 1


def test_too_many_instances_are_refused_before_they_are_made_and_the_limit_can_be_raised(
    project: Project,
) -> None:
    axis = list(range(1000))
    matrix = {"a": axis, "b": axis, "c": axis}
    assert refused(project, matrix) == [
        "the matrix of 's' has 1000000000 combinations; the limit is 10000 stages "
        "(raise it by `max_instances: 1000000000` at the top of the pipeline)"
    ]
    small = {"a": axis[:4]}
    both = stage("s", small) + "\n" + stage("t", small)
    project.pipeline(both, head="max_instances: 7\n")
    with pytest.raises(
        SpecError,
        match="has 8 stages with the instances of 't'; the limit is 7 .raise it by `max_instances: 8`",
    ):
        compile_(project)
    assert len(compile_(project, sets=["max_instances=8"]).stages) == 8
    fan_in = stage("s", {"a": axis}) + "\n" + stage("t", {"b": axis[:101]}, "needs: [s], ")
    project.pipeline(fan_in, head="max_instances: 1101\n")
    assert len(compile_(project).stages["t[0]"].needs) == 1000
    project.pipeline(
        stage("s", {"a": axis}) + "\n" + stage("t", {"b": axis}, "needs: [s], "), head="max_instances: 2000\n"
    )
    with pytest.raises(
        SpecError,
        match="1000 instances of 't' need 1000 inputs and stages each, and a pipeline may have 200000",
    ):
        compile_(project)
