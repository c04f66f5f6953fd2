"""Code that is not in the project: PYTHONPATH, `.pth`, editable and user installs, upgraded packages."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project
from tests.installed import installed

STEP = """
    import {module}
    def f(ctx, inputs, outputs):
        outputs["o"].write_text({module}.value())
"""
PIPELINE = "a: {uses: run.python, with: {function: step.py:f}, outputs: {o: o.txt}}"
SITE = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is not in the project, with a package `lib` and a module beside it."""
    folder = tmp_path / "outside"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/__init__.py").write_text(
        "from importlib.resources import files\nfrom pathlib import Path\nfrom .parts import part\n"
        "def value():\n    a = Path(__file__).with_name('data.txt').read_text()\n"
        "    return part() + a + files('lib').joinpath('data.txt').read_text()\n"
    )
    (folder / "lib/parts.py").write_text("import beside\ndef part(): return beside.x\n")
    (folder / "lib/data.txt").write_text("1")
    (folder / "beside.py").write_text("x = 'b'\n")
    return folder


@pytest.fixture
def step(project: Project) -> Project:
    """A project whose one stage imports `lib`."""
    project.write("step.py", STEP.format(module="lib"))
    project.pipeline(PIPELINE)
    return project


def test_code_on_pythonpath_runs_and_is_in_the_key_by_content(step: Project, outside: Path) -> None:
    env = {"PYTHONPATH": str(outside)}
    assert step.states(**env) == {"a": "ran"}
    assert step.output("a.o", **env) == b"b11"
    assert step.states(**env) == {"a": "hit"}
    (outside / "lib/data.txt").write_text("2")
    assert "code lib/data.txt changed" in step.cli("explain", "a", **env).stdout
    assert step.states(**env) == {"a": "ran"}
    (outside / "beside.py").write_text("x = 'c'\n")
    assert step.states(**env) == {"a": "ran"}
    assert step.output("a.o", **env) == b"c22"


def test_two_checkouts_of_outside_code_give_one_key(step: Project, outside: Path) -> None:
    assert step.states(PYTHONPATH=str(outside)) == {"a": "ran"}
    other = outside.rename(outside.with_name("elsewhere"))
    assert step.states(PYTHONPATH=str(other)) == {"a": "hit"}


def test_another_pythonpath_is_other_code(step: Project, outside: Path, tmp_path: Path) -> None:
    assert step.states(PYTHONPATH=str(outside)) == {"a": "ran"}
    (tmp_path / "first").mkdir()
    (tmp_path / "first/beside.py").write_text("x = 'other'\n")
    env = {"PYTHONPATH": f"{tmp_path / 'first'}{os.pathsep}{outside}"}
    assert step.states(**env) == {"a": "ran"}
    assert step.output("a.o", **env) == b"other11"


def test_the_folder_of_the_run_shadows_no_module(project: Project, tmp_path: Path) -> None:
    project.write("step.py", "import wave\ndef f(ctx, i, outputs): outputs['o'].write_text(wave.__file__)\n")
    project.pipeline(PIPELINE)
    here = Project(tmp_path / "here")
    here.write("wave.py", "raise RuntimeError('not the standard library')\n")
    here.cli("run", str(project.folder / "pipeline.yaml"))


def test_reads_stay_declared_where_the_project_itself_is_on_pythonpath(project: Project) -> None:
    project.pipeline("a: {uses: text.odd, with: {how: read, path: " + str(project.folder / "in.txt") + "}}")
    done = project.cli("run", exits=1, PYTHONPATH=".")
    assert "in.txt" in done.stdout + done.stderr


def test_an_upgraded_package_is_a_miss(project: Project, tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    project.write("step.py", STEP.format(module="helper"))
    project.pipeline(PIPELINE)
    env = {"PYTHONPATH": str(libs)}
    installed(libs, "helper", "1.0", "def value(): return 'one'\n")
    assert project.states(**env) == {"a": "ran"}
    assert project.states(**env) == {"a": "hit"}
    installed(libs, "helper", "1.1", "def value(): return 'two'\n")
    assert "helper 1.0 → 1.1" in project.cli("explain", "a", **env).stdout
    assert project.states(**env) == {"a": "ran"}


def test_a_local_package_built_again_under_its_version_is_a_miss(project: Project, tmp_path: Path) -> None:
    libs = tmp_path / "libs"
    project.write("step.py", STEP.format(module="helper"))
    project.pipeline(PIPELINE)
    env = {"PYTHONPATH": str(libs)}
    here = '{"url": "file:///src/helper", "dir_info": {}}'
    installed(libs, "helper", "1.0", "def value(): return 'one'\n", direct_url_json=here)
    assert project.states(**env) == {"a": "ran"}
    installed(libs, "helper", "1.0", "def value(): return 'two'\n", direct_url_json=here)
    assert project.states(**env) == {"a": "ran"}
    assert project.output("a.o", **env) == b"two"


def test_a_module_that_was_missing_is_found_once_it_is_there(project: Project) -> None:
    project.write("step.py", STEP.format(module="plug"))
    project.pipeline(PIPELINE)
    said = project.cli("run", exits=1).stdout
    assert "the module plug, which step.py:1 imports, is not installed" in said
    assert "pip install" not in said
    project.write("plug.py", "def value(): return 'x'\n")
    assert project.states() == {"a": "ran"}


def test_a_known_module_is_named_by_its_distribution(project: Project) -> None:
    project.write("step.py", "def f(ctx, i, o):\n    import cv2\n")
    project.pipeline(PIPELINE)
    said = project.cli("run", exits=1).stdout
    assert "the module cv2, which step.py:2 imports, is not installed (pip install opencv-python" in said
    assert "FAIL" not in project.cli("doctor").stdout
    project.write("step.py", "import cv2\ndef f(ctx, i, o): pass\n")
    assert "FAIL cv2: missing, needed by a" in project.cli("doctor", exits=1).stdout


def test_a_file_beside_a_stage_is_never_taken_for_a_package(project: Project) -> None:
    project.write("stages/plug.py", "x = 1\n")
    project.write(
        "stages/mine.py",
        """
        from deploy_runner.sdk import Context, File, Output, Stage, StageOutputs
        class Mine(Stage):
            \"\"\"Mine.\"\"\"
            uses = "my.own"
            class Outputs(StageOutputs):
                o: File = Output("o.txt")
            def run(self, ctx, params, inputs, outputs):
                import plug
        """,
    )
    project.pipeline("a: {uses: my.own}")
    said = project.cli("run", exits=1).stdout
    assert "the module plug, which stages/mine.py:8 imports" in said
    assert "from . import plug" in said
    assert "pip install" not in said


def test_a_stage_may_use_code_on_pythonpath(project: Project, outside: Path) -> None:
    project.write(
        "stages/mine.py",
        """
        import lib
        from deploy_runner.sdk import Context, File, Output, Stage, StageOutputs
        class Mine(Stage):
            \"\"\"Mine.\"\"\"
            uses = "my.own"
            class Outputs(StageOutputs):
                o: File = Output("o.txt")
            def run(self, ctx, params, inputs, outputs):
                outputs.o.write_text(lib.value())
        """,
    )
    project.pipeline("a: {uses: my.own}")
    env = {"PYTHONPATH": str(outside)}
    assert project.states(**env) == {"a": "ran"}
    (outside / "lib/data.txt").write_text("2")
    assert project.states(**env) == {"a": "ran"}
    assert project.output("a.o", **env) == b"b22"


def base_python() -> str:
    return str(Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}"))


def run_as(python: str, project: Project, *args: str, exits: Any = 0, **env: str) -> str:
    done = subprocess.run(
        [python, "-m", "deploy_runner", *args], cwd=project.folder, env={**project.env, **env},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == exits, done.stdout + done.stderr
    return done.stdout


def test_a_user_site_with_everything_in_it_works(step: Project, outside: Path, tmp_path: Path) -> None:
    """As after `pip install --user`: deploy_runner and its packages lie in the user site alone."""
    site = tmp_path / "base" / "lib" / SITE.parent.name / "site-packages"
    site.parent.mkdir(parents=True)
    site.mkdir()
    for entry in SITE.iterdir():
        (site / entry.name).symlink_to(entry)
    (site / "lib.pth").write_text(f"{outside}\n")
    env = {"PYTHONUSERBASE": str(tmp_path / "base")}
    assert "1 ran" in run_as(base_python(), step, "run", **env)
    assert "1 hit" in run_as(base_python(), step, "run", **env)
    assert "FAIL" not in run_as(base_python(), step, "doctor", **env)
    (outside / "lib/data.txt").write_text("2")
    assert "1 ran" in run_as(base_python(), step, "run", **env)
    (site / "old.py").write_text("raise RuntimeError('built for another numpy')\n")
    step.write("step.py", "import old\n" + (step.folder / "step.py").read_text())
    said = run_as(base_python(), step, "doctor", exits=1, **env)
    assert (
        f"FAIL old: RuntimeError: built for another numpy ({site}/old.py), needed by a at pipeline.yaml:"
        in said
    )
    assert "(export PYTHONNOUSERSITE=1)" in said


def test_an_editable_install_works(step: Project, outside: Path, tmp_path: Path) -> None:
    """A real one by pip, into an environment that sees this one's packages."""
    (outside / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "my-lib"\nversion = "0.1"\n'
        '[tool.setuptools]\npackages = ["lib"]\npy-modules = ["beside"]\n'
    )
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation",
               "--target", str(target), "-e", str(outside)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    place = next(venv.glob("lib/python*/site-packages"))
    for entry in target.iterdir():
        entry.rename(place / entry.name)
    # Both environments' `.pth` files and finders count, as with --system-site-packages.
    (place / "parent.pth").write_text(f"import site; site.addsitedir({str(SITE)!r})\n")
    python = str(venv / "bin/python")
    assert "1 ran" in run_as(python, step, "run")
    assert "1 hit" in run_as(python, step, "run")
    (outside / "lib/data.txt").write_text("2")
    assert "1 ran" in run_as(python, step, "run")
    run_as(python, step, "get", "a.o", "--to", "taken")
    assert (step.folder / "taken").read_bytes() == b"b22"
