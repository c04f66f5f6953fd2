"""run.python calls a function as its page says, and says what doesn't fit the call."""

from __future__ import annotations

from tests.conftest import Project

FUNCTIONS = """
from pathlib import Path

def kinds(ctx, inputs, outputs, *, suffix="!"):
    assert isinstance(ctx.workdir, Path) and all(isinstance(p, Path) for p in [*inputs.values(), *outputs.values()])
    outputs["text"].write_text(inputs["text"].read_text() + suffix)
    outputs["folder"].mkdir()
    (outputs["folder"] / "a.txt").write_text("a")
    ctx.figure("letters", 6)
    return "ignored"

def two(inputs, outputs): ...

def named(ctx, inputs, outputs, *, color): ...

class Other: ...

VALUE = 3
"""


def test_a_function_gets_its_context_paths_by_name_and_parameters(project: Project) -> None:
    project.write("steps/f.py", FUNCTIONS)
    project.pipeline(
        """
        a:
          uses: run.python
          inputs: {text: in.txt}
          outputs: {text: out.txt, folder: made/}
          with: {function: "steps/f.py:kinds", params: {suffix: "?"}}
        """
    )
    done = project.run()
    assert done["stages"]["a"]["figures"] == {"letters": 6}
    assert project.output("a.text") == b"hello?"
    assert project.states() == {"a": "hit"}


def test_functions_that_can_not_be_called_so_are_refused_in_a_sentence(project: Project) -> None:
    said = {
        ("two", "{}"): "f.py:two(inputs, outputs) can't be called: too many positional arguments "
        "(declare it as two(ctx, inputs, outputs))",
        ("named", "{colour: red}"): "f.py:named has no parameter 'colour' (did you mean 'color'?)",
        ("named", "{}"): "f.py:named(ctx, inputs, outputs, *, color) can't be called: missing a required "
        "argument: 'color'",
        ("named", "{color: 1, ctx: 2}"): "can't be called: multiple values for argument 'ctx'",
        ("Other", "{}"): "f.py:Other() can't be called: too many positional arguments",
        ("VALUE", "{}"): "f.py:VALUE is not a function",
    }
    project.write("f.py", FUNCTIONS)
    project.pipeline(
        "\n".join(
            f's{n}: {{uses: run.python, outputs: {{o: o}}, with: {{function: "f.py:{name}", params: {params}}}}}'
            for n, (name, params) in enumerate(said)
        )
    )
    errors = [stage["error"] for stage in project.run(exits=1)["stages"].values()]
    for error, sentence in zip(errors, said.values(), strict=True):
        assert sentence in error
