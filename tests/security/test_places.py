"""A stage sees no more of its project and the store where they lie among the system's or Python's own folders."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import pytest

from tests.security.hostile import Attacked, Kernel, attacked

LOOK = """
        look: {uses: run.command, outputs: {o: o}, with: {command: "(cat %s; ls %s/data) > $OUTPUT_O 2>&1 || true"}}
        sneaky: {uses: text.odd, with: {how: read, path: %s/data/extra.csv}}
        good: {uses: text.upper, inputs: {text: in.txt}}
"""


@pytest.fixture
def in_opt(kernel: Kernel) -> Iterator[Attacked]:
    """A project in /opt, as images of containers have it (or /usr/src/app)."""
    with attacked(kernel, within="/opt") as made:
        yield made


@pytest.fixture
def in_its_environment(kernel: Kernel) -> Iterator[Attacked]:
    """A project in whose own folder the virtual environment was made that runs it."""
    with attacked(kernel) as made:
        folder = made.project.folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        made.python = str(folder / "bin/python")
        packages = folder / f"lib/python{sysconfig.get_python_version()}/site-packages"
        (packages / "outer.pth").write_text(
            f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        )
        (packages / "inner.py").write_text("FOUND = 'found'\n")
        yield made


def look(target: Attacked) -> None:
    """Have stages look for what they have not declared; they see nothing of it, and what they declare."""
    folder = target.project.folder
    target.project.write("data/extra.csv", "the content")
    target.project.write("in.txt", "hello")
    secret = folder / ".deploy-runner/secret"
    target.pipeline(LOOK % (f"{folder}/data/extra.csv {secret}", folder, folder))
    stages = target.run()["stages"]
    assert "error" not in stages["look"], stages["look"]["error"]
    assert stages["good"]["state"] == "ran"
    assert "it read data/extra.csv (stages/texts.py:63), which is not declared" in stages["sneaky"]["error"]
    assert secret.stat().st_size == 32
    printed = target.cli("get", "look.o", "--to", str(folder / "seen"))
    assert printed.returncode == 0, printed.stderr
    lines = (folder / "seen").read_text().splitlines()
    assert len(lines) == 3
    assert all(line.endswith(("No such file or directory", "Permission denied")) for line in lines)


def test_a_project_in_a_folder_of_the_system_shows_its_stages_what_they_declare(in_opt: Attacked) -> None:
    look(in_opt)


def test_a_project_that_is_its_own_environment_shows_its_stages_what_they_declare(
    in_its_environment: Attacked,
) -> None:
    look(in_its_environment)
    in_its_environment.project.write(
        "made.py",
        """
def call(ctx, inputs, outputs):
    import inner, numpy
    outputs["o"].write_text(inner.FOUND + str(numpy.ones(2).sum()))
""",
    )
    in_its_environment.pipeline("""
        made: {uses: run.python, outputs: {o: o}, with: {function: "made.py:call"}}
        """)
    assert in_its_environment.run()["stages"]["made"]["state"] == "ran"
    assert in_its_environment.project.objects()
