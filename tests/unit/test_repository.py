"""The rules that the code itself keeps: imports, start-up, names, where files are written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy_runner.registry import Registry
from tests.conftest import ROOT, Project

HEAVY = ("torch", "boto3", "onnx", "onnxruntime", "huggingface_hub", "sagemaker", "ray", "obstore",
         "openvino", "nncf", "coremltools")  # fmt: skip


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
    assert not any(
        name.startswith(("deploy_runner.engine.execute.crew", "deploy_runner.engine.execute.dispatch"))
        for name in found
    )
    unused = {"argparse", "concurrent.futures", "dataclasses", "glob", "inspect", "logging", "random", "shutil",
              "socket", "subprocess", "tempfile", "deploy_runner.store.shared"}  # fmt: skip
    assert not found & unused


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
        if file.name in ("sagemaker_inference.py", "ray_deployment.py", "hub_net.py", "compare_on_mac.py"):
            continue  # They run in containers, from a bundle, and on a Mac.
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            assert not {n.partition(".")[0] for n in names} & {*HEAVY, "numpy", "safetensors", "isal"}, file


def test_the_path_of_a_built_in_stage_type_is_its_name(tmp_path: Path) -> None:
    for kind in Registry(tmp_path).all():
        assert kind.file.resolve() == ROOT / "stages" / f"{kind.cls.uses.replace('.', '/')}.py"
        assert kind.summary.endswith(".")


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports, and the names that it takes from them as if they were modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module or ''}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def test_no_module_imports_from_a_test_module() -> None:
    """What tests share is a fixture of a conftest, or a module without tests."""
    for file in (f for f in tracked(".py") if f.parts[len(ROOT.parts)] in ("tests", "benchmarks", "docs")):
        names = {part for name in imported(file) for part in name.split(".")}
        assert not [name for name in names if name.startswith("test_")], file


def test_every_error_that_a_test_expects_has_its_message_compared() -> None:
    """The right type for the wrong reason is no success."""
    for file in (f for f in tracked(".py") if f.is_relative_to(ROOT / "tests")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("raises"):
                assert {"match"} & {keyword.arg for keyword in node.keywords}, f"{file}:{node.lineno}"


def test_no_file_of_code_is_longer_than_400_lines() -> None:
    """At 400 lines a file is split by idea, tests as well as what they test."""
    lengths = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in tracked(".py")}
    assert not {file: lines for file, lines in lengths.items() if lines > 400}


WRITE = {"write_text", "write_bytes", "touch", "mkstemp", "NamedTemporaryFile", "TemporaryFile", "copy2", "copyfile",
         "copytree", "extractall", "O_CREAT", "O_TRUNC", "O_APPEND"}  # fmt: skip


def writes(node: ast.AST) -> bool:
    """Say whether an expression names or calls what makes or changes a file."""
    if isinstance(node, ast.Attribute):
        return node.attr in WRITE or ast.unparse(node) in ("shutil.copy", "shutil.move", "sqlite3.connect")
    if not isinstance(node, ast.Call) or ast.unparse(node.func).split(".")[-1] not in ("open", "fdopen"):
        return False
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if any(re.fullmatch(r"[rbt]*[wax+][bt+]*", mode) for mode in modes):
        return True
    return bool(re.search(r"\bO_(WRONLY|RDWR)\b", ast.unparse(node)))


def writers(tree: ast.AST, name: str = "") -> Iterator[str]:
    """Yield the functions that write, by their qualified names."""
    for node in ast.iter_child_nodes(tree):
        defines = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        inner = f"{name}.{node.name}".lstrip(".") if defines else name  # type: ignore[attr-defined]
        if writes(node):
            yield inner
        yield from writers(node, inner)


def test_our_own_files_are_written_in_one_place_only() -> None:
    """Whoever else writes a file has a reason here, and has it no longer when it is gone."""
    reasons = {
        "cli.py main": "standard output goes nowhere when its reader has gone",
        "commands/scaffold.py Planned.take": "the user's checkpoint is copied beside the new pipeline",
        "engine/execute/ask.py _answered": "a pipe",
        "engine/execute/dispatch.py Dispatch.log": "a log that only grows",
        "engine/execute/families.py _Posted.detach": "a file of the kernel",
        "engine/execute/fork.py ForkServer.spawn": "memory of the kernel",
        "engine/execute/kernel.py enter_user_namespace": "a file of the kernel",
        "engine/execute/ray_cluster.py _silence": "nothing: what Ray says on standard error goes nowhere",
        "engine/execute/root.py OwnRoot._mount_point": "an empty file in a worker's own root",
        "engine/execute/sandbox.py _limit_pids": "a file of the kernel",
        "engine/execute/worker.py run": "a worker's answer to the process that waits for it",
        "engine/runs.py Recorder._open_log": "a log that only grows",
        "local/aws_fleets.py Container._package": "private to a container of a dry run",
        "local/hub_uploads.py UploadHandler._lfs_complete": "private to the Hub of a dry run",
        "local/hub_uploads.py UploadHandler._lfs_put": "private to the Hub of a dry run",
        "local/oci.py _Handler._begin": "private to the registry of a dry run",
        "local/oci.py _Handler._complete": "private to the registry of a dry run",
        "local/oci.py _Handler._put_manifest": "private to the registry of a dry run",
        "local/servers.py _process": "the log of a dry run's server",
        "report/github.py add_to_summary": "the job summary of GitHub is appended to",
        "store/cas.py Store.place": "an object: synced and renamed as store/files.py does, by descriptors",
        "store/files.py _create": "the one place",
        "store/files.py copy_private": "a copy for a worker, which is no file of ours",
        "store/locks.py Lock.__init__": "a lock's empty file",
        "store/locks.py Lock._open": "a lock's empty file",
        "store/stat.py StatMemo._connect": "SQLite writes its own",
    }
    package = ROOT / "deploy_runner"
    files = {f.relative_to(package).as_posix(): f for f in package.rglob("*.py")}
    found = {
        f"{name} {function}"
        for name, file in files.items()
        if not name.startswith(("server/", "stages/"))  # They run where there is no store.
        for function in writers(ast.parse(file.read_text()))
    }
    assert found == set(reasons)


def test_no_file_of_the_project_holds_a_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in tracked.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".txt", "") and path.is_file():
            assert not re.search(r"/(work|farm)/|/root/\.", path.read_text(errors="replace")), name
