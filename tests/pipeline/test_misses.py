"""Editing anything that a stage runs makes it anew, by the real command line: no stale hit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import Project

LAYERS = """
from torch import nn

def head(): return nn.Linear(4, 2)
"""
MODEL = """
from torch import nn
from .layers import head

def build(): return nn.Sequential(head(), nn.Tanh())
"""


@pytest.fixture
def model(project: Project) -> Project:
    """A model whose factory imports a file of its package, prepared once."""
    torch.save(nn.Sequential(nn.Linear(4, 2), nn.Tanh()).state_dict(), project.folder / "ck.pt")
    project.write("net/__init__.py", "")
    project.write("net/layers.py", LAYERS)
    project.write("net/model.py", MODEL)
    project.pipeline("""
        weights: {uses: checkpoint.state_dict, inputs: {checkpoint: ck.pt}}
        model:
          uses: model.prepare
          inputs: {weights: "${{ stages.weights.outputs.weights }}"}
          with: {factory: "net/model.py:build", example: {shape: [2, 4]}}
        """)
    assert project.states() == {"weights": "ran", "model": "ran"}
    assert project.states() == {"weights": "hit", "model": "hit"}
    return project


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("net/model.py", MODEL.replace("nn.Tanh()", "nn.ReLU()")),
        ("net/layers.py", LAYERS + "# The same function.\n"),
        ("net/__init__.py", "import os\n"),
    ],
)
def test_an_edited_factory_or_what_it_imports_is_a_miss(model: Project, file: str, content: str) -> None:
    model.write(file, content)
    assert f"code {file} changed" in model.cli("explain", "model").stdout
    assert model.states() == {"weights": "hit", "model": "ran"}


def test_a_function_of_ones_own_makes_its_output_and_is_a_miss_when_it_or_its_import_is_edited(
    project: Project,
) -> None:
    project.write("parts/words.py", "def shout(text, mark): return text.upper() + mark\n")
    project.write(
        "steps.py",
        "from parts.words import shout\n\n"
        "def step(ctx, inputs, outputs, *, mark='!'):\n"
        "    outputs['loud'].write_text(shout(inputs['text'].read_text(), mark))\n"
        "    ctx.figure('letters', len(mark))\n",
    )
    project.pipeline("""
        loud:
          uses: run.python
          inputs: {text: in.txt}
          with: {function: "steps.py:step", params: {mark: "?"}}
          outputs: {loud: loud.txt}
        """)
    assert project.run()["stages"]["loud"]["figures"] == {"letters": 1}
    assert project.output("loud.loud") == b"HELLO?"
    assert project.states() == {"loud": "hit"}
    project.write("parts/words.py", "def shout(text, mark): return text.title() + mark\n")
    assert project.states() == {"loud": "ran"}
    assert project.output("loud.loud") == b"Hello?"
    steps = (project.folder / "steps.py").read_text()
    project.write("steps.py", steps.replace("mark)", "mark * 2)"))
    assert project.states() == {"loud": "ran"}
    assert project.output("loud.loud") == b"Hello??"
    project.write("in.txt", "bye")
    assert project.states() == {"loud": "ran"}
    assert project.output("loud.loud") == b"Bye??"


def test_what_a_relative_import_takes_from_the_package_itself_is_run_and_counts(model: Project) -> None:
    model.write("net/__init__.py", "from .layers import head as made\n")
    model.write("net/model.py", MODEL.replace("from .layers import head", "from . import made as head"))
    assert model.states() == {"weights": "hit", "model": "ran"}
    model.write("net/layers.py", LAYERS + "# The same function.\n")
    assert model.states() == {"weights": "hit", "model": "ran"}
    model.write("net/__init__.py", "from .layers import head as made\nmade.__doc__ = 'The head.'\n")
    assert model.states() == {"weights": "hit", "model": "ran"}
