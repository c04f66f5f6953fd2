"""docs/coming-from/torchserve.md: a handler of TorchServe's and its declaration answer the same pictures alike."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Project
from tests.serve.server import serving

PAGE = (ROOT / "docs/coming-from/torchserve.md").read_text()


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def _answer(project: Project, folder: Path, block: str) -> Any:
    """Run a block of commands, and return what the last one is answered."""
    make, serve, ask = (line.removeprefix("$ ") for line in block.splitlines())
    assert make == "deploy-runner run pipeline.yaml"
    with serving(*shlex.split(serve)[2:], folder=folder, cwd=project.folder) as server:
        line = ask.replace("http://127.0.0.1:8000", server.url)
        done = subprocess.run(["bash", "-c", line], cwd=project.folder, capture_output=True, check=True)
        return json.loads(done.stdout)


@pytest.mark.slow
def test_the_handler_and_its_declaration_answer_alike(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(ROOT / "examples", project.folder / "examples")
    project.write("pipeline.yaml", "".join(_blocks("yaml")))
    project.cli("run", "pipeline.yaml")
    by_handler, by_declaration = (
        _answer(project, tmp_path / str(place), block) for place, block in enumerate(_blocks("console"))
    )
    assert next(iter(by_handler)) == "seven" == by_declaration["prediction"]
    for one in by_declaration["classes"]:
        assert abs(by_handler[one["label"]] - one["score"]) < 1e-6
