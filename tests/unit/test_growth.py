"""Pipelines of strangers that are large, or made to be slow: the work grows with their size, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from deploy_runner.api import load, run
from deploy_runner.errors import SpecError
from deploy_runner.pipeline.loader import load_yaml
from deploy_runner.pipeline.spec import parse_duration, parse_size
from tests.conftest import Project
from tests.unit.compiling import compile_
from tests.unit.counting import calls_of

LONG = 1 << 17
"""What grows with the square doesn't end at this size."""
COMMAND = "{{uses: run.command, outputs: {{o: o}}, with: {{command: {}}}}}"


def in_a_row(n: int) -> tuple[str, str]:
    lines = [f"  v{i}: '${{{{ vars.v{i + 1} }}}}'" for i in range(n)]
    return "vars:\n" + "\n".join([*lines, f"  v{n}: x"]) + "\n", "a: " + COMMAND.format("'${{ vars.v0 }}'")


def in_a_circle(n: int) -> tuple[str, str]:
    lines = [f"  v{i}: '${{{{ vars.v{(i + 1) % n} }}}}'" for i in range(n)]
    return "vars:\n" + "\n".join(lines) + "\n", "a: " + COMMAND.format("'${{ vars.v0 }}'")


def stages_in_a_circle(n: int) -> tuple[str, str]:
    own = "{{uses: run.command, needs: [s{}], outputs: {{o: o}}, with: {{command: x}}}}"
    return "", "\n".join(f"s{i}: {own.format((i + 1) % n)}" for i in range(n))


def matrices_of_others(n: int) -> tuple[str, str]:
    own = "{{uses: run.command, matrix: '${{{{ stages.s{}.matrix }}}}', outputs: {{o: o}}, with: {{command: x}}}}"
    last = "{uses: run.command, matrix: {x: [1]}, outputs: {o: o}, with: {command: x}}"
    return "", "\n".join([*(f"s{i}: {own.format(i + 1)}" for i in range(n)), f"s{n}: {last}"])


def pairs(n: int) -> tuple[str, str]:
    matrix = f"matrix: {{x: [{','.join(map(str, range(n)))}]}}"
    take = "matrix: '${{ stages.a.matrix }}', inputs: {i: '${{ stages.a.outputs.o }}'}"
    command = "outputs: {o: o}, with: {command: 'x ${{ matrix.x }} ${{ vars.a }}'}}"
    return (
        "vars: {a: 1}\n",
        f"a: {{uses: run.command, {matrix}, {command}\nb: {{uses: run.command, {take}, {command}",
    )


def included(n: int) -> tuple[str, str]:
    axes = f"x: [{','.join(map(str, range(n)))}]"
    include = ", ".join(f"{{x: {i}, y: {i}}}" for i in range(n))
    exclude = ", ".join(f"{{x: {i}}}" for i in range(0, n, 3))
    return (
        "",
        f"a: {{uses: run.command, matrix: {{{axes}, include: [{include}], exclude: [{exclude}]}}, outputs: {{o: o}}, with: {{command: x}}}}",
    )


def plain_keys(n: int) -> tuple[str, str]:
    return "vars:\n" + "".join(f"  key{i}: {i}\n" for i in range(10 * n)), "a: " + COMMAND.format("x")


def written_out(n: int) -> tuple[str, str]:
    own = "{{uses: run.command, inputs: {{i: {}}}, outputs: {{o: o}}, with: {{command: x}}}}"
    sources = ["in.txt", *(f"'${{{{ stages.s{i}.outputs.o }}}}'" for i in range(n))]
    return "", "\n".join(f"s{i}: {own.format(source)}" for i, source in enumerate(sources))


def wrong_names(n: int) -> tuple[str, str]:
    """Each of n wrong names has n names that it could be."""
    good = "".join(f"  good_name_{i}: 1\n" for i in range(n))
    return "vars:\n" + good, "\n".join(
        f"s{i}: " + COMMAND.format(f"'${{{{ vars.god_name_{i} }}}}'") for i in range(n)
    )


SHAPES = [
    in_a_row,
    in_a_circle,
    stages_in_a_circle,
    matrices_of_others,
    pairs,
    included,
    plain_keys,
    written_out,
    pytest.param(wrong_names, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_work_grows_with_the_size(project: Project, shape: Callable[[int], tuple[str, str]]) -> None:
    def compiled(n: int) -> int:
        head, stages = shape(n)
        project.pipeline(stages, head=head)

        def work() -> None:
            with suppress(SpecError):
                compile_(project, home=project.folder / "nowhere" / "home")

        return calls_of(work)

    compiled(1)  # What is imported once is no part of it.
    none, once, tenfold = compiled(1), compiled(40), compiled(400)
    assert tenfold - none < 12 * (once - none)


def test_long_texts_are_read_at_once() -> None:
    for text in (
        "1" * LONG,
        "5" + " " * LONG + "!",
        "1 " * LONG,
        "1.1" * LONG,
        "5" + " " * LONG,
        "1h" * LONG + "x",
    ):
        with pytest.raises(ValueError, match="is not a size such as"):
            parse_size(text + "?")
        with pytest.raises(ValueError, match="is not a duration such as") as caught:
            parse_duration(text + "?")
        assert len(str(caught.value)) < 200
    assert parse_duration(" 1h 30 m\n") == 5400
    assert parse_size(" 1.5 KiB ") == 1536


def test_what_is_written_out_is_not_blamed_on_aliases() -> None:
    keys = load_yaml("".join(f"k{i}: 1\n" for i in range(51_000)), "p.yaml")
    assert len(keys.value) == 51_000
    with pytest.raises(SpecError, match="the aliases expand to more than 100000 values"):
        load_yaml("a: &a [" + "x," * 51_000 + "]\nb: [*a, *a]", "p.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("? " + "k" * 1001 + "\n: 1", "p.yaml:1:3: a key is longer than 1000 characters"),
        ("%TAG !a! x\n---\na: 1", "p.yaml:1:1: the directive %TAG is not allowed"),
    ],
)
def test_what_only_a_bomb_contains_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_yaml(text, "p.yaml")


def bomb(first: str, more: str, levels: int) -> str:
    return "vars:\n" + "\n".join([f"  v0: {first}", *(
        f"  v{i}: " + more.replace("@", f"${{{{ vars.v{i - 1} }}}}") for i in range(1, levels))]) + "\n"  # fmt: skip


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (bomb("xxxxxxxxxx", "'@@@@@@@@@@'", 12), "the references of the pipeline expand to more than 80000000 characters"),
        pytest.param(bomb("x", "[@, @, @, @, @, @, @, @, @, @]".replace("@", "'@'"), 12), "expand to more than 80000000 characters", marks=pytest.mark.slow),
        (bomb("x", "[[[[[[[[['@']]]]]]]]]", 9), r"vars\.v8 is nested deeper than 64 levels"),
        ("".join("  " * i + f"{'vars' if not i else 'k' * 900}:\n" for i in range(4)) + "        x: 1\n", "the keys from the top down to here are longer than 2000"),
    ],
)  # fmt: skip
def test_what_references_expand_to_is_limited(project: Project, head: str, said: str) -> None:
    project.pipeline("a: " + COMMAND.format("x"), head=head)
    with pytest.raises(SpecError, match=said):
        compile_(project)


def test_of_many_problems_the_first_hundred_are_said(project: Project) -> None:
    project.pipeline(
        "\n".join(f"s{i}: {COMMAND.format('${{vars.x}}')}" for i in range(300)).replace(
            "${{vars.x}}", "'${{ vars.x }}'"
        )
    )
    with pytest.raises(SpecError, match="there is no vars.x") as caught:
        compile_(project)
    assert len(caught.value.problems) == 100


@pytest.mark.slow
def test_a_run_grows_with_its_stages(tmp_path: Path) -> None:
    def ran(n: int) -> int:
        project = Project(tmp_path / str(n))
        project.pipeline("\n".join(f"s{i}: {COMMAND.format(f'echo {i} > $OUTPUT_O')}" for i in range(n)))
        pipeline = load(project.folder / "pipeline.yaml")
        return calls_of(lambda: run(pipeline))

    ran(1)
    none, once, tenfold = ran(1), ran(30), ran(300)
    assert tenfold - none < 12 * (once - none)
