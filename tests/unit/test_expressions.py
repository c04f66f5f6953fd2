"""`${{ … }}`: what a reference may name, what stands in its place, and how a wrong one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from deploy_runner.errors import Problem, closest
from deploy_runner.pipeline.expressions import (
    OutputRef,
    Scope,
    Variables,
    parse_output,
    resolve,
    secret_name,
)
from deploy_runner.pipeline.loader import Node, load_yaml, plain
from deploy_runner.types import Mark

MARK = Mark("p.yaml", 3, 7)
VARS = """
size: 8
deep: {rate: 0.5, names: [x, y], off: false, none: null}
again: "${{ vars.size }}"
both: "${{ vars.deep.rate }}-${{ pipeline.name }}"
"""


def scope(text: str = VARS, *, allow_secrets: bool = False) -> tuple[Scope, Variables, list[Problem]]:
    problems: list[Problem] = []
    made = Scope(
        "demo",
        lambda path: variables(path),
        {"LEVEL": "3"},
        {"n": 3, "yes": True, "no": False, "none": None, "half": 1.5},
        allow_secrets=allow_secrets,
    )
    variables = Variables(load_yaml(text, "p.yaml") if text else None, made, problems)
    return made, variables, problems


def value(text: Any, **options: Any) -> Any:
    """Resolve a text that has to be right."""
    made, _, problems = scope(**options)
    result = plain(resolve(Node(text, MARK), made, problems))
    assert not problems
    return result


def refused(text: str, *options: Any, **more: Any) -> tuple[str, str]:
    """Resolve a text that has to be wrong; return what is wrong, and how to mend it."""
    made, _, problems = scope(*options, **more)
    node = resolve(Node(text, MARK), made, problems)
    assert node.value is None
    (problem,) = problems
    assert (problem.file, problem.line, problem.column) == MARK
    return problem.message, problem.fix


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no reference", "no reference"),
        ("${{ pipeline.name }}", "demo"),
        ("${{pipeline.name}}", "demo"),
        ("${{\n  pipeline.name\n}}", "demo"),
        ("<${{ pipeline.name }}|${{ env.LEVEL }}>", "<demo|3>"),
        ("${{ env.LEVEL }}", "3"),
        ("${{ matrix.n }}", 3),
        ("n${{ matrix.n }}", "n3"),
        ("${{ matrix.yes }}", True),
        ("${{ matrix.none }}", None),
        ("${{ matrix.yes }} ${{ matrix.no }} ${{ matrix.none }} ${{ matrix.half }}", "true false null 1.5"),
        ("${{ vars.size }}", 8),
        ("${{ vars.deep.rate }}", 0.5),
        ("${{ vars.deep.off }}", False),
        ("${{ vars.again }}", 8),
        ("${{ vars.both }}", "0.5-demo"),
        ("${{ vars.deep }}", {"rate": 0.5, "names": ["x", "y"], "off": False, "none": None}),
        ("${{ vars.deep.names }}", ["x", "y"]),
        ("}} ${{ vars.size }}", "}} 8"),
    ],
)
def test_a_value_stands_in_a_references_place(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


LITERALLY = "for the characters '${{' themselves write ${{ '${{' }}"
OPEN = "begin with one of stages, vars, env, secrets, matrix and pipeline"


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("${{ var.size }}", f"${{{{ var.size }}}} does not {OPEN}", "did you mean 'vars'?"),
        ("${{ vars }}", f"${{{{ vars }}}} does not {OPEN}", "did you mean 'vars'?"),
        ("${{ vars. }}", f"${{{{ vars. }}}} does not {OPEN}", "did you mean 'vars'?"),
        ("${{ }}", f"${{{{  }}}} does not {OPEN}", LITERALLY),
        ("${{ qqq.x }}", f"${{{{ qqq.x }}}} does not {OPEN}", LITERALLY),
        ("${{ pipeline.nme }}", "there is no ${{ pipeline.nme }}", "only pipeline.name"),
        ("${{ stages.a.outputs.b }}", "a stage's output can only be the whole value of an input", ""),
        ("${{ env.LEVLE }}", "env.LEVLE is not defined here", "did you mean 'LEVEL'?"),
        ("${{ env.OTHER }}", "env.OTHER is not defined here", "declare it under `env:`"),
        ("${{ env.HF_TOKEN }}", "HF_TOKEN is a credential, which `env` would store in plain text", "${{ secrets.HF_TOKEN }}"),
        ("${{ matrix.hal }}", "matrix.hal is not defined here", "did you mean 'half'?"),
        ("${{ matrix.HF_TOKEN }}", "matrix.HF_TOKEN is not defined here", "declare it under `matrix:`"),
        ("${{ vars.sise }}", "there is no vars.sise", "did you mean 'size'?"),
        ("${{ vars.qqq }}", "there is no vars.qqq", ""),
        ("${{ vars.deep.rat }}", "there is no vars.deep.rat", "did you mean 'rate'?"),
        ("${{ vars.size.x }}", "there is no vars.size.x", ""),
        ("${{ vars.deep.names.x }}", "there is no vars.deep.names.x", ""),
        ("a${{ vars.deep }}", "${{ vars.deep }} is a list or mapping and can't be part of a string", ""),
        ("${{ vars.deep.names }}b", "${{ vars.deep.names }} is a list or mapping and can't be part of a string", ""),
        ("${{ vars.size", "a '${{' is not closed by '}}'", ""),
        ("${{ vars.size }} and ${{ vars", "a '${{' is not closed by '}}'", ""),
    ],
)  # fmt: skip
def test_a_wrong_reference_is_refused_with_its_place(text: str, message: str, fix: str) -> None:
    assert refused(text) == (message, fix)


def test_a_secret_is_named_and_its_value_is_nowhere() -> None:
    made, _, problems = scope(allow_secrets=True)
    found = resolve(Node({"a": Node("${{ secrets.HF_TOKEN }}", MARK)}, MARK), made, problems)
    text = found.value["a"].value
    assert secret_name(text) == "HF_TOKEN"
    assert not problems
    assert made.secrets == {"HF_TOKEN"}


@pytest.mark.parametrize(
    "text", ["HF_TOKEN", "\x01secret:A\x01x", "x\x01secret:A\x01", "\x01secret:\x01", ""]
)
def test_any_other_text_is_no_secret(text: str) -> None:
    assert secret_name(text) is None


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("${{ secrets.no-name }}", "'no-name' is not a valid name of a secret", ""),
        ("${{ secrets.DEPLOY_RUNNER_CACHE_KEY }}",
         "DEPLOY_RUNNER_CACHE_KEY is reserved by deploy-runner and can't be a stage's secret", ""),
        ("x${{ secrets.A }}", "the secret A is part of a longer string, which would leak it",
         "make it the whole value of a parameter"),
    ],
)  # fmt: skip
def test_a_secret_that_would_leak_or_is_none_is_refused(text: str, message: str, fix: str) -> None:
    assert refused(text, allow_secrets=True) == (message, fix)


def test_a_secret_has_its_place_in_parameters() -> None:
    assert refused("${{ secrets.A }}") == ("a secret can be used only under `with:`", "")


def test_every_reference_of_a_tree_is_resolved_where_it_stands() -> None:
    made, _, problems = scope()
    tree = load_yaml('a: ["${{ vars.size }}", {b: "${{ env.LEVEL }}"}]\nc: 1\nd: text', "p.yaml")
    found = resolve(tree, made, problems)
    assert plain(found) == {"a": [8, {"b": "3"}], "c": 1, "d": "text"}
    assert found.mark == tree.mark
    assert found.keys == tree.keys
    assert found.value["c"] is tree.value["c"]
    assert found.value["a"].value[0].mark == tree.value["a"].value[0].mark
    assert not problems


def test_what_a_variable_holds_has_the_place_of_its_reference() -> None:
    made, _, problems = scope()
    found = resolve(Node("${{ vars.deep }}", MARK), made, problems)
    assert found.value["names"].mark == MARK
    assert [child.mark for child in found.value["names"].value] == [MARK, MARK]


def test_every_wrong_reference_of_a_tree_is_said() -> None:
    made, _, problems = scope()
    resolve(load_yaml('a: "${{ vars.x }}"\nb: "${{ env.X }}"', "p.yaml"), made, problems)
    assert [str(p) for p in problems] == [
        "p.yaml:1:4: there is no vars.x",
        "p.yaml:2:4: env.X is not defined here (declare it under `env:`)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${{ stages.a.outputs.text }}", OutputRef("a", "", "text")),
        ("  ${{stages.a-b_1.outputs.te-xt}}\n", OutputRef("a-b_1", "", "te-xt")),
        ("${{ stages.a[x=1,y].outputs.text }}", OutputRef("a", "x=1,y", "text")),
        ("${{ stages.a[].outputs.text }}", OutputRef("a", "", "text")),
        ("${{ stages.1a.outputs.text }}", None),
        ("${{ stages.a.outputs.text.more }}", None),
        ("${{ stages.a.outputs }}", None),
        ("${{ stages.a }}", None),
        ("${{ vars.a.outputs.text }}", None),
        ("x ${{ stages.a.outputs.text }}", None),
        ("${{ stages.a.outputs.text }} x", None),
        ("stages.a.outputs.text", None),
    ],
)
def test_a_whole_text_may_name_an_output(text: str, expected: OutputRef | None) -> None:
    assert parse_output(text) == expected


@pytest.mark.parametrize(
    ("text", "circle"),
    [
        ('a: "${{ vars.a }}"', "a → a"),
        ('a: "${{ vars.b }}"\nb: "${{ vars.c.x }}"\nc: "${{ vars.b }}"', "b → c → b"),
    ],
)
def test_variables_in_a_circle_are_refused_once(text: str, circle: str) -> None:
    _, variables, problems = scope(text)
    variables.all()
    assert problems[0].message == f"vars refer to each other in a cycle: {circle}"
    assert len([p for p in problems if "in a cycle" in p.message]) == 1


def test_all_variables_are_resolved_and_every_wrong_one_is_said() -> None:
    _, variables, problems = scope(VARS)
    assert variables.all() == {
        "size": 8,
        "deep": {"rate": 0.5, "names": ["x", "y"], "off": False, "none": None},
        "again": 8,
        "both": "0.5-demo",
    }
    assert not problems
    _, variables, problems = scope('a: "${{ vars.x }}"\nb: {c: "${{ env.X }}"}\nd: 1')
    assert variables.all() == {"a": None, "b": {"c": None}, "d": 1}
    assert [p.where for p in problems] == ["p.yaml:1:4", "p.yaml:2:8"]


def test_a_variable_is_resolved_once() -> None:
    _, variables, problems = scope('a: "${{ vars.x }}"\nb: "${{ vars.a }} ${{ vars.a }}"')
    variables.all()
    variables.all()
    assert len(problems) == 1
    assert variables("b") == "null null"


def test_a_pipeline_without_variables_has_none() -> None:
    _, variables, problems = scope("")
    assert variables.all() == {}
    assert not problems
    assert refused("${{ vars.size }}", "") == ("there is no vars.size", "")


def test_the_closest_spelling_is_suggested_if_it_is_close() -> None:
    assert closest("sise", ["other", "size"]) == "did you mean 'size'?"
    assert closest("size", iter(["size", "sizes"])) == "did you mean 'size'?"
    assert closest("abcde", ["abcxyzw"]) == ""
    assert closest("abc", ["abcdefg"]) == "did you mean 'abcdefg'?"
    assert closest("x", []) == ""
