"""`init`: what it writes for each goal runs, is valid by the schema beside it, and keeps what a project has."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import DIGITS, ROOT, Project


@pytest.mark.slow
def test_an_onnx_file_of_somebody_else(tmp_path: Path) -> None:
    here = Project(tmp_path / "project")
    shutil.copy(ROOT / "examples/detector/detector.onnx", here.folder)
    here.write(".gitignore", "*.pyc")
    here.write("configs/dry-run.yaml", "target: {name: dry-run, live: false}\n")
    said = here.cli("init", "detector.onnx", "--goal", "sagemaker").stdout
    assert "kept configs/dry-run.yaml, which already exists" in said
    assert (here.folder / ".gitignore").read_text() == "*.pyc\n.deploy-runner/\n"
    assert here.run()["failed"] == 0
    stages = yaml.safe_load((here.folder / "pipeline.yaml").read_text())["stages"]
    assert stages["package"]["inputs"]["model"] == "${{ stages.model.outputs.onnx }}"
    _follows_the_schema_line(here.folder / "pipeline.yaml")
    lacks = here.cli("plan", "--config", "configs/production.yaml", exits=2).stderr
    assert (
        "doesn't set target.aws.region, target.aws.bucket, target.aws.role_arn and target.aws.image_uri"
        in lacks
    )


def _follows_the_schema_line(pipeline: Path) -> None:
    """Validate a pipeline as an editor does, by what its first line names, and again with a misspelt key."""
    import jsonschema

    head = pipeline.read_text().splitlines()[0]
    place = pipeline.parent / head.removeprefix("# yaml-language-server: $schema=")
    validator = jsonschema.Draft202012Validator(json.loads(place.read_text()))
    content = yaml.safe_load(pipeline.read_text())
    assert list(validator.iter_errors(content)) == []
    content["stages"]["model"]["inputs"]["wieghts"] = "x"
    assert "wieghts" in str(next(validator.iter_errors(content)))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["triton", "kserve", "oci"])
def test_goals_for_what_others_serve_and_keep(goal: str, tmp_path: Path) -> None:
    project = Project(tmp_path / "My détector v2")
    shutil.copy(ROOT / "examples/detector/detector.onnx", project.folder / "mon modèle.onnx")
    project.cli("init", "mon modèle.onnx", "--goal", goal)
    assert project.run()["failed"] == 0
    _follows_the_schema_line(project.folder / "pipeline.yaml")
    if goal != "triton":
        name = {"kserve": "target.aws.bucket", "oci": "target.oci.registry"}[goal]
        assert name in project.cli("plan", "--config", "configs/production.yaml", exits=2).stderr


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["openvino", "mlflow", "coreml"])
def test_goals_whose_packages_few_have(goal: str, tmp_path: Path) -> None:
    here = Project(tmp_path / "project")
    here.write("model.py", (DIGITS / "model.py").read_text())
    shutil.copy(DIGITS / "digits.pt", here.folder)
    here.cli("init", "digits.pt", "--goal", goal, "--factory", "model.py:build", "--shape", "1,1,8,8")
    here.cli("validate")
    _follows_the_schema_line(here.folder / "pipeline.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_project_that_can_not_be_written_is_said_before_anything_is_looked_at(tmp_path: Path) -> None:
    here = Project(tmp_path / "project")
    shutil.copy(ROOT / "examples/detector/detector.onnx", here.folder)
    here.folder.chmod(0o555)
    try:
        said = here.cli("init", "detector.onnx", exits=2).stderr
    finally:
        here.folder.chmod(0o755)
    assert "can't be written (name a folder of your own as the project, with --copy)" in said
