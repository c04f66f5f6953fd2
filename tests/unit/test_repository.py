"""The rules that the code itself keeps: imports, start-up, names, where files are written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy_runner.registry import Registry
from tests.conftest import ROOT, Project

HEAVY = ("torch", "boto3", "onnx", "onnxruntime", "huggingface_hub", "sagemaker")


def modules_after(project: Project, *args: str) -> set[str]:
    code = (
        "import sys; from deploy_runner.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=project.folder, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_help_imports_nothing_heavy(project: Project) -> None:
    found = modules_after(project, "--help")
    assert not found & {*HEAVY, "pydantic", "yaml", "rich"}


def test_a_no_op_run_imports_nothing_heavy(chain: Project) -> None:
    chain.run()
    found = modules_after(chain, "run")
    assert not found & {*HEAVY, "pydantic", "yaml", "rich", "jinja2", "asyncio", "deploy_runner.sdk"}
    assert not any(name.startswith("deploy_runner.engine.execute.crew") for name in found)


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."]])
def test_lint_is_clean(tool: list[str]) -> None:
    binary = Path(sys.executable).parent / tool[0]
    done = subprocess.run([binary, *tool[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_clean_in_every_file() -> None:
    binary = Path(sys.executable).parent / "mypy"
    done = subprocess.run([binary], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    of_others = (ROOT / "tests" / "cases", ROOT / "examples")
    ours = [f for f in tracked(".py") if not any(f.is_relative_to(folder) for folder in of_others)]
    assert f"no issues found in {len(ours)} source files" in done.stdout


def tracked(suffix: str) -> list[Path]:
    """Return the files that git knows, with this suffix."""
    done = subprocess.run(
        ["git", "ls-files", f"*{suffix}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in done.stdout.splitlines()]


def test_stage_files_import_heavy_libraries_only_inside_functions() -> None:
    for file in sorted((ROOT / "stages").rglob("*.py")):
        if file.name == "sagemaker_inference.py":
            continue  # It runs in a container.
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not {n.partition(".")[0] for n in names} & {*HEAVY, "numpy", "safetensors", "isal"}, file


def test_the_path_of_a_built_in_stage_type_is_its_name(tmp_path: Path) -> None:
    for kind in Registry(tmp_path).all():
        assert kind.file.resolve() == ROOT / "stages" / f"{kind.cls.uses.replace('.', '/')}.py"
        assert kind.summary.endswith(".")


def test_our_own_files_are_written_in_one_place_only() -> None:
    """Logs that only grow, what is private to a worker or a container, and unpacked copies are named here.

    So is what isn't on a disk: pipes, and files of the kernel by which a worker is confined.
    """
    allowed = {"store/files.py", "store/cas.py", "store/locks.py", "local/hub_uploads.py", "local/servers.py",
               "local/aws_endpoints.py", "engine/runs.py", "engine/fetch.py", "commands/running.py",
               "commands/scaffold.py", "engine/execute/ask.py", "engine/execute/crew.py",
               "engine/execute/worker.py", "engine/execute/families.py", "engine/execute/kernel.py",
               "engine/execute/root.py", "engine/execute/sandbox.py"}  # fmt: skip
    writes = re.compile(r"""write_text\(|write_bytes\(|open\([^)]*["'][wax]b?["']|O_CREAT""")
    package = ROOT / "deploy_runner"
    found = {
        str(f.relative_to(package))
        for f in package.rglob("*.py")
        if f.relative_to(package).parts[0] != "server"  # It runs where there is no store.
        and writes.search(f.read_text())
        and f.name not in ("testing.py", "sdk.py")
    }
    assert found <= allowed


def test_no_file_of_the_project_holds_a_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".txt", "") and path.is_file():
            assert not re.search(r"/(work|farm)/|/root/\.", path.read_text(errors="replace")), name
