"""`doctor` starts workers as a run would, and names each stage that can't run here, its place and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project


def test_what_no_worker_can_import_is_told_with_its_stages_and_one_command(
    project: Project, tmp_path: Path
) -> None:
    libs = tmp_path / "libs"
    for name in ("jinja2-1.0.dist-info", "typing_extensions-99.0.dist-info"):
        (libs / name).mkdir(parents=True)
    (libs / "broken.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    (libs / "above.py").write_text("import broken\n")
    project.write("step.py", "import above, broken, cv2\ndef f(ctx, i, o): pass\n")
    project.write("beside.txt", "read at import")
    project.write(
        "stages/mine.py",
        f"""
        from deploy_runner.sdk import Stage
        TEXT = open("{project.folder}/beside.txt").read()
        class Mine(Stage):
            "Read a file that no worker sees."
            uses = "mine"
        """,
    )
    project.pipeline(
        """
        a: {uses: run.python, inputs: {text: in.txt}, outputs: {o: o}, with: {function: "step.py:f"}}
        b: {uses: mine}
        c: {uses: text.odd, resources: {gpu: 2}}
        """
    )
    env = {"PYTHONPATH": str(libs), "CUDA_VISIBLE_DEVICES": ""}
    lines = project.cli("doctor", exits=1, **env).stdout.splitlines()
    failed = [line.removeprefix("FAIL ") for line in lines if line.startswith("FAIL ")]
    at = [f"{stage} at pipeline.yaml:{line}:3" for stage, line in (("a", 4), ("b", 5), ("c", 6))]
    said = f"OSError: libcudart.so.12: cannot open shared object file ({libs}/broken.py); nor can above be imported"
    assert f"broken: {said}, needed by {at[0]} (remove {libs} from PYTHONPATH)" in failed
    assert f"cv2: missing, needed by {at[0]} (pip install opencv-python-headless)" in failed
    assert (
        f"resources: it needs 2 GPUs, and this machine has none in CUDA_VISIBLE_DEVICES, needed by {at[2]} "
        in str(failed)
    )
    (worker,) = [line for line in failed if line.startswith("worker: FileNotFoundError")]
    assert worker.endswith(f"needed by {at[1]} (deploy-runner run b --log shows more)")
    (old,) = [line for line in failed if line.startswith("jinja2: 1.0 of ")]
    assert f"and >=3.1 is required, needed by {', '.join(at)} (remove {libs} from PYTHONPATH)" in old
    assert any(line.startswith(f"note typing_extensions: 99.0 of {libs} hides ") for line in lines)
    assert len(failed) == 5


@pytest.mark.slow
def test_doctor_as_json_names_the_stages_of_each_check(project: Project) -> None:
    project.write("step.py", "import cv2\ndef f(ctx, i, o): pass\n")
    project.pipeline('a: {uses: run.python, outputs: {o: o}, with: {function: "step.py:f"}}')
    checks = json.loads(project.cli("doctor", "--json", exits=1).stdout)
    (cv2,) = [check for check in checks if not check["ok"]]
    assert cv2 == {
        "name": "cv2", "ok": False, "detail": "missing", "fix": "pip install opencv-python-headless", "note": False,
        "stages": [{"stage": "a", "file": "pipeline.yaml", "line": 4, "column": 3}],
    }  # fmt: skip


@pytest.mark.slow
def test_doctor_says_which_store_is_used_and_why(chain: Project, tmp_path: Path) -> None:
    def store(exits: Any = 0, **env: str) -> str:
        lines = chain.cli("doctor", exits=exits, **env).stdout.splitlines()
        (said,) = [line for line in lines if line[5:].startswith("store: ")]
        return said

    own = chain.folder / ".deploy-runner"
    assert store() == f"ok   store: {own} (beside the pipeline, for DEPLOY_RUNNER_HOME is not set)"
    home = {"HOME": str(tmp_path), "DEPLOY_RUNNER_HOME": "~/all"}
    assert store(0, **home) == f"ok   store: {tmp_path}/all (DEPLOY_RUNNER_HOME is ~/all)"
    said = store(1, DEPLOY_RUNNER_HOME="/proc/store")
    assert said.startswith("FAIL store: the store's folder /proc/store can't be created: ")
    assert "needed by a at pipeline.yaml:4:3, b at " in said
