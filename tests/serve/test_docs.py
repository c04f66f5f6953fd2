"""docs/serving.md: its pipeline is run, its command serves, and its requests are answered."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT, Project
from tests.serve.server import serving

PAGE = (ROOT / "docs/serving.md").read_text()


def commands(program: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


def test_the_commands_of_the_page_run(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(ROOT / "examples", project.folder / "examples")
    project.write("pipeline.yaml", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0])
    make, serve = (line.split()[1:] for line in commands("deploy-runner"))
    project.cli(*make)
    with serving(*serve[1:], folder=tmp_path, cwd=project.folder) as server:
        asked = commands("curl")
        assert len(asked) == 4
        for line in asked:
            command = line.replace("http://127.0.0.1:8000", server.url)
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
            assert done.stdout
    assert (project.folder / ".deploy-runner").is_dir()


def test_every_route_and_every_status_is_on_the_page() -> None:
    for route in ("/predict", "/invocations", "/ping", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert f"`{route}`" in PAGE or f" {route}`" in PAGE, route
    for status in ("400", "406", "413", "415", "422", "429", "503", "504"):
        assert status in PAGE
