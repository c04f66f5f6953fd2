"""The example projects compile, are small, and their pages say how to run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy_runner.pipeline.compiled import compile_pipeline
from tests.conftest import ROOT

PROJECTS = sorted(path.parent for path in (ROOT / "examples").glob("*/pipeline.yaml"))
GATES = {"verify.parity", "verify.accuracy", "select"}


def test_there_is_a_project_for_each_kind_of_input() -> None:
    assert [project.name for project in PROJECTS] == ["onnx", "pictures", "sound", "table", "text"]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_an_example_goes_through_the_gates_to_a_package_or_a_push(project: Path) -> None:
    uses = {stage.uses for stage in compile_pipeline(project / "pipeline.yaml").stages.values()}
    assert uses >= GATES
    assert any(name.startswith(("package.", "push.")) for name in uses)
    for checkpoint in project.glob("*.pt"):
        assert checkpoint.stat().st_size < 400 * 1024
        assert (project / "train.py").exists()
    page = (project / "README.md").read_text()
    assert f"$ cd examples/{project.name}\n$ deploy-runner run\n" in page
    assert "![The report of the run](report.png)" in page
    assert (project / "report.png").stat().st_size < 150 * 1024
