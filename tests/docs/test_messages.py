"""docs/troubleshooting.md: what is printed is found there by its words, and what to do stands beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy_runner.errors import Problem, SpecError
from deploy_runner.pipeline.compiled import compile_pipeline
from tests.conftest import ROOT, Project

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
ENTRY = re.compile(r"^- (`+) ?(.+?) ?\1(?: → (.+))?$", re.MULTILINE)
YOURS = re.compile(r"…|\b(?!YAML|PATH=)[A-Z][A-Z]+(?:-[A-Z]+)*\b")
"""What stands for a name or a number of the reader's own."""

BROKEN = {
    "a mistyped type": "stages:\n  a: {uses: onnx.exprot}",
    "an input is missing": "stages:\n  a: {uses: onnx.export}",
    "an unknown parameter": "stages:\n  a: {uses: onnx.check, inputs: {model: m.onnx}, with: {levle: 1}}",
    "a file is missing": "stages:\n  a: {uses: onnx.check, inputs: {model: nothing.onnx}}",
    "a stage is missing": 'stages:\n  a: {uses: onnx.check, inputs: {model: "${{ stages.b.outputs.x }}"}}',
    "a variable is missing": 'stages:\n  a: {uses: onnx.check, inputs: {model: "${{ vars.opset }}"}}',
    "an open reference": 'stages:\n  a: {uses: onnx.check, inputs: {model: "${{ vars.a"}}',
    "an unset variable": "env: {REGION: null}\nstages:\n  a: {uses: onnx.check}",
    "a key twice": "name: again\nstages:\n  a: {uses: onnx.check}",
    "no stage": "stages: {}",
    "a tab": "stages:\n\ta: 1",
    "an octal number": "vars: {mode: 010}\nstages: {}",
    "an empty file": "",
    "a name with a dot": "stages:\n  a.b: {uses: onnx.check}",
    "an empty matrix": "stages:\n  a: {uses: onnx.check, matrix: {n: [1], exclude: [{n: 1}]}}",
    "a credential": "env: {AWS_SECRET_ACCESS_KEY: null}\nstages:\n  a: {uses: onnx.check}",
}


def entries() -> list[tuple[re.Pattern[str], int, str]]:
    """Return each message of the page as it may be printed, how many letters of it are fixed, and what to do."""
    found = []
    for _, text, fix in ENTRY.findall(PAGE):
        fixed = YOURS.split(text)
        pattern = re.compile(".*?".join(map(re.escape, fixed)) + "$", re.DOTALL)
        found.append((pattern, sum(map(len, fixed)), fix))
    return found


ENTRIES = entries()


def refusals(folder: Path, text: str) -> list[Problem]:
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(f"version: 1\nname: digits\n{text}\n" if text else text)
    with pytest.raises(SpecError, match=r"pipeline\.yaml") as error:
        compile_pipeline(pipeline, environ={})
    return list(error.value.problems)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_refusal_of_a_pipeline_is_on_the_page_with_its_fix(text: str, tmp_path: Path) -> None:
    for problem in refusals(tmp_path, text):
        on_page(problem.message, problem.fix)


def on_page(message: str, fix: str) -> None:
    """Assert that the page has this message, by the words that are in it whatever its names are."""
    enough = 0.4 * len(message.partition(": ")[0])
    found = [said for pattern, fixed, said in ENTRIES if fixed > enough and pattern.match(message)]
    assert found, message
    assert not fix or any(found), f"{message} ({fix})"


def test_a_refusal_of_the_command_line_is_on_the_page(project: Project) -> None:
    project.write("in.txt", "x")
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    for words in (["get", "a"], ["rollback", "a"], ["run", "--set", "x"]):
        said = project.cli(*words, exits=2).stderr.strip().splitlines()[-1]
        message, _, fix = said.removeprefix("error: ").partition(" (")
        on_page(re.sub(r"^[\w./-]+:\d+:\d+: ", "", message), fix)
