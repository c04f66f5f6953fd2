"""Somebody who begins: an empty home, an environment into which pip puts what the pages say, and mistakes."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

__all__ = ["Newcomer", "environment", "install"]

_SOURCES = ("deploy_runner", "stages", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def environment(folder: Path, requirement: str, *more: str) -> Path:
    """Return the folder of programs of an environment that has this of us, and nothing that we don't ask for.

    `requirement` is a name with extras, as a page says it; the code is this checkout's. Those who share
    `folder` share the environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    venv, made = folder / "venv", folder / "made"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True, timeout=120)
            install(venv / "bin", requirement, *more)
            made.touch()
    return venv / "bin"


def install(programs: Path, *requirements: str) -> None:
    """Do what `pip install …` does for a user, with this checkout in the place of the released project."""
    source = programs.parent / "source"
    if not source.exists():
        source.mkdir()
        for name in _SOURCES:  # A copy: setuptools writes into what it builds from.
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, source)
    ours = [re.sub(r"^deploy-runner(?=\[|$)", str(source), name) for name in requirements]
    command: list[str | Path] = [
        programs / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    subprocess.run([*command, "-c", ROOT / "constraints.txt", *ours], check=True, timeout=1500)


class Newcomer:
    """Types commands in the folder of a project."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        home = folder.parent / "home"
        home.mkdir(exist_ok=True)
        folder.mkdir()
        self.env = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin", "LANG": "C.UTF-8"}

    def types(self, command: str, **env: str) -> str:
        """Run a command that has to succeed; return what it printed."""
        done = self._run(command, env)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def errs(self, command: str, *, exits: int = 2, **env: str) -> str:
        """Run a command that has to fail, and say in one sentence what to do next; return that sentence."""
        done = self._run(command, env)
        assert done.returncode == exits, done.stdout
        said = [line for line in done.stdout.splitlines() if re.match(r"error: |✗ |.*: error: ", line)]
        assert len(said) == 1, done.stdout
        assert said[0].endswith(")"), said[0]
        assert not said[0].endswith(") ("), said[0]
        return said[0]

    def interrupts(self, command: str, after: str) -> str:
        """Press Ctrl-C once the command has printed a line that begins like this; return all it printed."""
        process = self._start(command, {})
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith(after):
                os.killpg(process.pid, signal.SIGINT)
                break
        printed += process.communicate(timeout=600)[0]
        assert process.returncode == 130, printed
        assert "Traceback" not in printed
        return printed

    def follows(self, command: str, *, at_most: int) -> tuple[str, list[str]]:
        """Run a command, and install what it says in its last brackets, until it succeeds.

        Returns what it printed then, and what was installed on the way.
        """
        installed: list[str] = []
        while True:
            done = self._run(command, {})
            if done.returncode == 0:
                return done.stdout, installed
            advice = re.findall(r"\(pip install '?([\w\[\],.-]+)'?\)", done.stdout)
            assert advice, done.stdout
            assert advice[0] not in installed, done.stdout
            installed.append(advice[0])
            assert len(installed) <= at_most, installed
            install(self.programs, advice[0])

    def moves(self, folder: Path) -> None:
        """Move the project to another place."""
        shutil.move(self.folder, folder)
        self.folder = folder

    def _run(self, command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        process = self._start(command, env)
        try:
            printed, _ = process.communicate(timeout=900)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert "Traceback" not in printed, printed
        return subprocess.CompletedProcess(shlex.split(command), process.returncode, printed, "")

    def _start(self, command: str, env: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=self.folder, env={**self.env, **env}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
