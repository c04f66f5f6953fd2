"""`uses:` is found by the path of a file: the built-in types, and a project's own."""

from __future__ import annotations

import pytest

from deploy_runner.errors import SpecError
from deploy_runner.registry import Registry
from tests.conftest import Project

SHOUT = """
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
from ..wording import louder

class Shout(Stage):
    \"\"\"Shout a text.\"\"\"
    uses = "speech.shout"
    class Inputs(StageInputs):
        text: File
    class Outputs(StageOutputs):
        text: File = Output("loud.txt")
    def run(self, ctx: Context, params: StageParams, inputs: Inputs, outputs: Outputs) -> None:
        outputs.text.write_text(louder(inputs.text.read_text()))
"""
PIPELINE = "a: {uses: speech.shout, inputs: {text: in.txt}}"


@pytest.fixture
def speaking(project: Project) -> Project:
    """A project whose stage type lies in a folder, beside a helper that is none."""
    project.write("stages/speech/shout.py", SHOUT)
    project.write("stages/wording.py", "def louder(text): return text.upper() + '!'\n")
    project.write("stages/speech/dead.py", "raise RuntimeError('a helper that nobody imports')\n")
    project.pipeline(PIPELINE)
    return project


def test_a_type_lies_at_the_path_of_its_name_and_what_lies_beside_it_are_helpers(speaking: Project) -> None:
    assert speaking.states() == {"a": "ran"}
    assert speaking.output("a.text") == b"HELLO!"
    speaking.write("stages/wording.py", "def louder(text): return text.title()\n")
    assert "the stage's code wording.py changed" in speaking.cli("explain", "a").stdout
    assert speaking.states() == {"a": "ran"}
    assert speaking.output("a.text") == b"Hello"


def test_a_type_in_the_file_of_another_is_refused_with_its_place(speaking: Project) -> None:
    speaking.write("stages/speech/loud.py", SHOUT)
    error = speaking.cli("run", exits=2).stderr
    assert (
        "stages/speech/loud.py:6:1: the stage type 'speech.shout' is defined in the file of 'speech.loud'"
        in error
    )
    assert "move it to stages/speech/shout.py" in error


@pytest.mark.parametrize(
    "name", ["onnx", "onnx.protos", "model.bundles", "onnx/export", "..onnx.export", "_x", ""]
)
def test_a_folder_a_helper_and_a_path_are_no_types(project: Project, name: str) -> None:
    assert Registry(project.folder).get(name) is None


def test_a_broken_file_of_a_type_is_named_with_its_line(speaking: Project) -> None:
    speaking.write("stages/speech/shout.py", SHOUT.replace("..wording", "..wordings"))
    with pytest.raises(SpecError, match=r"shout.py:2:1: there is no stages/wordings.py, which it imports"):
        Registry(speaking.folder).get("speech.shout")
