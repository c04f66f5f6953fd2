"""The Action and the workflows: valid by the published schemas, clean by zizmor, and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, Project

BIN = Path(sys.executable).parent
WORKFLOWS = [
    *sorted((ROOT / ".github/workflows").glob("*.yml")),
    *sorted((ROOT / "examples/github-workflow").glob("*.yml")),
]


def check(*args: str) -> None:
    done = subprocess.run([BIN / args[0], *args[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_fits_the_published_schema(workflow: Path) -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow))


def test_the_action_fits_the_published_schema() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml")


def test_dependabot_fits_the_published_schema() -> None:
    check("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")


def test_zizmor_finds_nothing() -> None:
    check(
        "zizmor", "--offline", "--no-progress", "action.yml", ".github/dependabot.yml", *map(str, WORKFLOWS)
    )


def test_every_action_is_pinned_by_its_commit() -> None:
    for file in (ROOT / "action.yml", *WORKFLOWS):
        for line in file.read_text().splitlines():
            if "uses:" in line and "./" not in line:
                _, _, reference = line.partition("@")
                assert len(reference.split()[0]) == 40, line


def test_inputs_reach_scripts_through_the_environment_only() -> None:
    for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_the_docs_list_every_input_with_its_default() -> None:
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    rows = re.findall(
        r"^\| `([\w-]+)` \| (?:`(.*?)`)? ?\| .+ \|$",
        (ROOT / "docs/github-actions.md").read_text(),
        re.MULTILINE,
    )
    assert dict(rows) == {name: given["default"] for name, given in inputs.items()}


@pytest.mark.parametrize(("remote", "extras"), [("", "onnx"), ("s3://bucket/prefix", "onnx,remote")])
def test_a_shared_cache_installs_its_extra(remote: str, extras: str, tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    script = next(step["run"] for step in steps if step.get("name") == "Install deploy-runner")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PACKAGE": ".", "EXTRAS": "onnx", "REMOTE": remote}
    done = subprocess.run(["bash", "-ec", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == f".[{extras}]"


def run_step(project: Project, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the step `run` as the Actions runner does."""
    steps = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    script = next(step["run"] for step in steps if step.get("id") == "run")
    for name in ("summary", "output"):
        (tmp_path / name).touch()
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=project.folder, capture_output=True, text=True, check=False,
        env={
            **project.env, "PATH": f"{BIN}:{os.environ['PATH']}", "PIPELINE": "pipeline.yaml", "CONFIG": "", "STAGES": "",
            "SETS": "", "RUNNER_TEMP": str(tmp_path), "GITHUB_ACTIONS": "true", **env,
            "GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        },
    )  # fmt: skip


def test_the_actions_script_runs_the_pipeline(chain: Project, tmp_path: Path) -> None:
    done = run_step(chain, tmp_path, STAGES="a b", SETS="stages.a.with.suffix=x y\n\nstages.b.with.times=3\n")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "output").read_text().removeprefix("result="))
    assert {id_: stage["state"] for id_, stage in result["stages"].items()} == {"a": "ran", "b": "ran"}
    assert "### deploy-runner: test (dry-run)" in (tmp_path / "summary").read_text()
    values = ("--set", "stages.a.with.suffix=x y", "--set", "stages.b.with.times=3")
    assert chain.output("b", *values) == b"HELLOX YHELLOX YHELLOX Y"


def test_the_actions_script_fails_with_the_exit_code_of_the_run(project: Project, tmp_path: Path) -> None:
    project.pipeline("bad: {uses: text.odd, with: {how: gate}}")
    done = run_step(project, tmp_path)
    assert done.returncode == 1
    assert "::error file=pipeline.yaml" in done.stdout + done.stderr
