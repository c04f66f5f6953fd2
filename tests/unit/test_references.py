"""The tokenizer of `${{ … }}`, and texts of strangers: each works, or is refused in one clear sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy_runner.errors import SpecError
from deploy_runner.pipeline.references import BadReference, Reference, pieces, whole
from tests.conftest import Project
from tests.unit.compiling import compile_

CHARACTERS = 1 << 17
"""What grows with the square doesn't end at this size."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("no reference", ["no reference"]),
        ("${{ vars.a }}", [Reference("vars.a")]),
        ("${{vars.a}} ${{\tvars.b\n}}", [Reference("vars.a"), " ", Reference("vars.b")]),
        ("${{ vars.a }}}", [Reference("vars.a"), "}"]),
        ('{"a": {"b": ${{ vars.a }}}}', ['{"a": {"b": ', Reference("vars.a"), "}}"]),
        ("}} {{ x }} ${x} ${#a[@]} $(( 1 )) ${ {{", ["}} {{ x }} ${x} ${#a[@]} $(( 1 )) ${ {{"]),
        ("$${{ vars.a }}", ["$", Reference("vars.a")]),
        ("${{ '}}' }}'", [Reference("'}}'"), "'"]),
        ("it's ${{ f('it''s }}') }}", ["it's ", Reference("f('it''s }}')")]),
    ],
)
def test_a_text_falls_into_its_pieces(text: str, expected: list[str | Reference]) -> None:
    assert pieces(text) == expected


@given(st.lists(st.sampled_from(["${{", "}}", "'", "$", "{", "}", " ", "vars.a", "é"])).map("".join))
def test_pieces_are_the_text_or_it_is_refused(text: str) -> None:
    try:
        found = pieces(text)
    except BadReference:
        assert whole(text) is None
        return
    written = [part if isinstance(part, str) else f"${{{{{part.expression}}}}}" for part in found]
    assert "".join(written).replace(" ", "") == text.replace(" ", "")
    assert all("${{" not in part for part in found if isinstance(part, str))
    assert (whole(text) is not None) == (len(pieces(text.strip())) == 1 and "${{" in text)


@pytest.mark.parametrize("unit", ["${{", "${{ ", "${{ '", " ", "'", "${{ a }}", "}", "''", "}}${"])
def test_the_longest_text_is_read_at_once(unit: str) -> None:
    text = "${{" + unit * (CHARACTERS // len(unit))
    try:
        assert pieces(text)
    except BadReference:
        assert whole(text) is None


COMMAND = "a: {{uses: run.command, outputs: {{o: o}}, with: {{command: {}}}}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"${{ vars.a }} ${{ vars.b }}"', "1 ${X} '2'"),
        ("'${{ vars.a }}{{ j }} {% if %} ${VAR} ${#arr[@]} ${{vars.a}}}'", "1{{ j }} {% if %} ${VAR} ${#arr[@]} 1}"),
        ('''"${{ '${{' }} github.sha }} $${{ vars.a }}"''', "${{ github.sha }} $1"),
        ('''"${{ 'it''s }}' }}"''', "it's }}"),
        ("'${{ vars.größe }} ünï'", "x ünï"),
        ('"${{ vars.my key }}"', "k"),
    ],
)  # fmt: skip
def test_texts_of_strangers_are_taken(project: Project, text: str, expected: str) -> None:
    head = "vars: {a: 1, b: \"${X} '2'\", größe: x, my key: k}\n"
    project.pipeline(COMMAND.format(text), head=head)
    assert compile_(project).stages["a"].params["command"] == expected


NAMES = "${{{{ {} }}}} is an expression; references are names, without operators ({})"
GITHUB = "${{{{ {} }}}} is known to GitHub Actions only ({})"
BEFORE = "compute it before the run, and pass it by `--set vars.NAME=…`"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${{ github.sha }}", GITHUB.format("github.sha", "declare `env: {GITHUB_SHA: null}`, and write ${{ env.GITHUB_SHA }}")),
        ("x ${{ runner.os }}", GITHUB.format("runner.os", "declare `env: {RUNNER_OS: null}`, and write ${{ env.RUNNER_OS }}")),
        ("${{ github.token }}", GITHUB.format("github.token", "write ${{ secrets.GITHUB_TOKEN }}")),
        ("${{ github.event.number }}", GITHUB.format("github.event.number", "pass it by `--set vars.NAME=…`")),
        ("${{ steps.s.outputs.f }}", GITHUB.format("steps.s.outputs.f", "write ${{ stages.s.outputs.f }}")),
        ("${{ inputs.n }}", GITHUB.format("inputs.n", "write ${{ vars.n }}, and pass it by `--set vars.n=…`")),
        ("x ${{ vars.a || 'b' }}", NAMES.format("vars.a || 'b'", BEFORE)),
        ("${{ secrets.A || secrets.B }}", NAMES.format("secrets.A || secrets.B", BEFORE)),
        ("${{ matrix.os == 'linux' && 1 }}", NAMES.format("matrix.os == 'linux' && 1", BEFORE)),
        ("""${{ fromJSON('{"a": {"b": 1}}').a }}""", NAMES.format("""fromJSON('{"a": {"b": 1}}').a""", BEFORE)),
        ("${{ vars['a'] }}", "${{ vars['a'] }} is an index (write ${{ vars.a }})"),
        ("${{ vars.a", "a '${{' is not closed by '}}'"),
        ("${{ vars.a ${{ vars.a }}", "a '${{' is not closed by '}}' before the next one"),
        ("${{ it's }}", "a quote (') inside '${{ … }}' is not closed"),
        ("${{ HOME }}", "${{ HOME }} does not begin with one of stages, vars, env, secrets, matrix and pipeline (for the characters '${{' themselves write ${{ '${{' }})"),
    ],
)  # fmt: skip
def test_expressions_of_github_are_refused_in_one_sentence(project: Project, text: str, said: str) -> None:
    project.pipeline(COMMAND.format("'" + text.replace("'", "''") + "'"), head="vars: {a: 1}\n")
    with pytest.raises(SpecError, match=r"\A\S+pipeline\.yaml:\d+:\d+: ") as caught:
        compile_(project)
    (problem,) = caught.value.problems
    assert str(problem).removeprefix(f"{problem.where}: ") == said
    assert problem.column > 50


def test_a_reference_that_would_stay_as_it_is_written_is_refused(project: Project) -> None:
    project.pipeline(
        'a: {uses: run.command, outputs: {o: "${{ vars.x }}"}, timeout: "${{ vars.x }}", with: {command: x}}\n'
        'b: {uses: run.command, outputs: {"${{ vars.x }}": o}, with: {command: x}}\n'
        'c: {uses: run.command, needs: ["${{ vars.x }}"], with: {command: x}}',
        head='env: {E: "${{ env.E }}"}\nvars: {x: o, d: {"${{ vars.x }}": 1}}\n',
    )
    with pytest.raises(SpecError, match="takes no references") as caught:
        compile_(project)
    assert [f"{p.message} ({p.fix})" for p in caught.value.problems] == [
        "`env` takes no references (write `E: null` for a variable that the environment must have)",
        "a key can't contain a reference (only values can)",
        "`outputs` takes no references (change it by an overlay, or by `--set stages.a.outputs=…`)",
        "`timeout` takes no references (change it by an overlay, or by `--set stages.a.timeout=…`)",
        "a key can't contain a reference (only values can)",
        "`needs` takes no references (change it by an overlay, or by `--set stages.c.needs=…`)",
    ]


def test_a_reference_without_quotes_in_a_flow_mapping_is_told_what_to_do(project: Project) -> None:
    project.pipeline(COMMAND.format("${{ vars.a }} x"), head="vars: {a: 1}\n")
    with pytest.raises(
        SpecError,
        match=r":5:\d+: not valid YAML: .* \(put a `\$\{\{ … \}\}` between \{\} or \[\] in quotes\)",
    ):
        compile_(project)
