"""The Action and the workflows: valid by the published schemas, clean by zizmor, pinned."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

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


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-issue-forms", [".github/ISSUE_TEMPLATE/bug.yml", ".github/ISSUE_TEMPLATE/feature.yml"]),
        ("github-issue-config", [".github/ISSUE_TEMPLATE/config.yml"]),
        ("citation-file-format", ["CITATION.cff"]),
    ],
)
def test_issue_forms_and_the_citation_fit_the_published_schemas(schema: str, files: list[str]) -> None:
    check("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


def test_the_citation_names_the_version_and_the_licence_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["repository-code"] == project["urls"]["Homepage"]


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
