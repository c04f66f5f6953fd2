"""What stages need in common is imported once, and what only stages need that are up to date isn't at all."""

from __future__ import annotations

from tests.conftest import Project

TYPES = '''
import sys
from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
class First(Stage):
    """Import a module ahead."""
    uses = "text.first"
    preload = ("wave",)
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
        outputs.text.write_text("x")
class Second(Stage):
    """Say what is imported."""
    uses = "text.second"
    preload = ("colorsys",)
    class Params(StageParams):
        note: str = ""
    class Inputs(StageInputs):
        text: File
    class Outputs(StageOutputs):
        text: File = Output("x.txt")
    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        outputs.text.write_text("x")
        ctx.figure("known", [name for name in ("wave", "colorsys") if name in sys.modules])
'''


def test_only_what_stages_need_that_are_to_run_is_imported(project: Project) -> None:
    project.write("stages/own.py", TYPES)
    stages = """
    first: {uses: text.first}
    second: {uses: text.second, inputs: {text: "${{ stages.first.outputs.text }}"}, with: {note: "NOTE"}}
    """
    for note, known in (("a", ["wave", "colorsys"]), ("b", ["colorsys"])):
        project.pipeline(stages.replace("NOTE", note))
        assert project.run()["stages"]["second"]["figures"]["known"] == known
