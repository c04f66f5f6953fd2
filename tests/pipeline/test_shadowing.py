"""Files of the user's that are named like Python's modules, or like installed ones, hide none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import Project

NAMES = ("copyreg", "enum", "json", "numpy", "onnxruntime", "pydantic", "random", "re", "select", "signal",
         "token", "torch", "typing", "yaml")  # fmt: skip


def hide(project: Project, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        project.write(f"{name}.py", f"print('the user\\'s {name}', flush=True)\nraise SystemExit(9)\n")
    project.write("onnx/model.onnx", "x")
    project.write("onnx/export.py", "x = 1\n")


def test_no_command_worker_or_server_imports_a_module_of_the_folder_that_it_runs_in(project: Project) -> None:
    hide(project)
    project.write(
        "lib/steps.py",
        """
        def step(ctx, inputs, outputs):
            import asyncio, secrets, tokenize, safetensors.numpy
            outputs["o"].write_bytes(safetensors.numpy.save({}))
        """,
    )
    project.write("lib/token.py", "raise SystemExit(9)\n")
    project.pipeline("""
        a: {uses: text.upper, inputs: {text: in.txt}}
        s: {uses: run.python, outputs: {o: o}, with: {function: "lib/steps.py:step"}}
        c: {uses: run.command, outputs: {o: o}, with: {command: "python3 -c 'import random, json' && touch $OUTPUT_O"}}
        """)
    assert set(project.states().values()) == {"ran"}
    script = Path(sys.executable).parent / "deploy-runner"
    done = subprocess.run(
        [script, "plan"], cwd=project.folder, env=project.env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the user's" not in done.stdout
    served = project.cli("serve", "in.txt", exits=2)
    assert "in.txt" in served.stderr
    assert "the user's" not in served.stdout + served.stderr


def test_a_bare_interpreter_that_runs_the_package_by_name_takes_none_either(project: Project) -> None:
    """Without the `.pth` files of an environment, which import much before the folder is on the path."""
    hide(project)
    path = ":".join(folder for folder in sys.path if folder)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "deploy_runner", "--help"], cwd=project.folder,
        env={**project.env, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("usage: deploy-runner")
