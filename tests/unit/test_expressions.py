"""`${{ … }}`: what a reference may name, what stands in its place, and how a wrong one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from deploy_runner.errors import Problem, closest
from deploy_runner.pipeline.expressions import (
    Budget,
    OutputRef,
    Scope,
    Variables,
    parse_output,
    resolve,
    secret_name,
    shown_cycle,
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
        ("${{ '${{' }} is ${{ 'it''s }}' }}", "${{ is it's }}"),
        ("${{ '''' }}", "'"),
        ("${{ '' }}", ""),
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
        ("${{ steps.a.outputs.b }}", "${{ steps.a.outputs.b }} is known to GitHub Actions only", "write ${{ stages.a.outputs.b }}"),
        ("${{ 'a' 'b' }}", f"${{{{ 'a' 'b' }}}} does not {OPEN}", LITERALLY),
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
    made, _, problems = scope("deep: {names: [x, [y]], more: {z: {}}}")
    found = resolve(Node("${{ vars.deep }}", MARK), made, problems)
    names, more = found.value["names"], found.value["more"]
    below = [found, names, *names.value, *names.value[1].value, more, more.value["z"]]
    assert [node.mark for node in below] == [MARK] * 7
    assert plain(found) == {"names": ["x", ["y"]], "more": {"z": {}}}


def test_a_place_varies_if_it_takes_a_value_of_the_matrix() -> None:
    made, _, problems = scope()
    for text, varies in (
        ("${{ env.LEVEL }} ${{ vars.size }}", False),
        ("${{ matrix.n }}", True),
        ("${{ env.LEVEL }}", True),
    ):
        resolve(Node(text, MARK), made, problems)
        assert made.varies is varies
    assert not problems


def test_a_value_that_only_other_instances_of_the_matrix_have_is_missing_in_this_one() -> None:
    made, _, problems = scope()
    made.matrix, made.others = {"os": "linux", "n": 3}, {"sdk"}
    made.env = {}
    for text in ("${{ matrix.sdk }}", "${{ env.sdk }}"):
        resolve(Node(text, MARK), made, problems)
    assert [(problem.message, problem.fix) for problem in problems] == [
        (
            'matrix.sdk is not defined in the instance of {os: "linux", n: 3}',
            "begin `include` with a value for all: `- sdk: …`",
        ),
        ("env.sdk is not defined here", "declare it under `env:`"),
    ]


def test_what_references_expand_to_is_counted_together() -> None:
    """A text counts by its characters, a value also by its nodes: 100 each."""
    made, _, problems = scope('text: "12345"\nlist: [a, [b]]')
    made.budget = Budget(limit=600)
    for text, spent in (
        ("${{ vars.text }}", 105),
        ("<${{ vars.text }}>", 112),
        ("plain", 112),
        ("${{ vars.list }}", 514),
    ):
        resolve(Node(text, MARK), made, problems)
        assert (made.budget.spent, problems) == (spent, [])
    resolve(Node(86 * "x" + "${{ '' }}", MARK), made, problems)
    assert (made.budget.spent, problems) == (600, [])
    assert resolve(Node("x${{ '' }}", MARK), made, problems).value is None
    said = "the references of the pipeline expand to more than 600 characters"
    assert problems == [Problem(said, *MARK, "shorten them")]


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


def test_a_long_cycle_is_shown_by_its_beginning_and_its_end() -> None:
    names = [f"v{number}" for number in range(12)]
    assert shown_cycle(names) == " → ".join(names)
    assert shown_cycle([*names, "v0"]) == " → ".join([*names[:10], "…", "v0"])


def test_of_many_cycles_the_later_ones_are_shown_by_their_name() -> None:
    pairs = "\n".join(f'a{i}: "${{{{ vars.b{i} }}}}"\nb{i}: "${{{{ vars.a{i} }}}}"' for i in range(14))
    _, variables, problems = scope(pairs)
    variables.all()
    assert [problem.message.partition(": ")[2] for problem in problems] == [
        *(f"a{i} → b{i} → a{i}" for i in range(12)),
        *(f"a{i} → … → a{i}" for i in (12, 13)),
    ]


def test_a_variable_that_was_in_a_cycle_is_empty_elsewhere() -> None:
    """The cycle is an error of the variables, and said once: not of all that takes one of them."""
    made, variables, problems = scope('a: "${{ vars.b }}"\nb: "${{ vars.a }}"')
    variables.all()
    assert len(problems) == 1
    assert resolve(Node("${{ vars.a }}${{ vars.b }}", MARK), made, problems).value == "nullnull"
    assert len(problems) == 1


def test_variables_may_be_64_levels_deep_with_those_that_they_take() -> None:
    inner, outer = "[" * 32 + "x" + "]" * 32, "{{k: {}}}"
    for levels, expected in (
        (32, []),
        (33, [Problem("vars.b is nested deeper than 64 levels", "p.yaml", 2, 4)]),
    ):
        taking = '"${{ vars.a }}"'
        for _ in range(levels):
            taking = outer.format(taking)
        _, variables, problems = scope(f"a: {inner}\nb: {taking}")
        assert (variables("b") is None) is bool(expected)
        assert problems == expected


def test_the_variables_that_are_used_are_known() -> None:
    _, variables, _ = scope()
    variables("deep.rate")
    variables("both")
    assert variables.used == {"deep", "both"}


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
