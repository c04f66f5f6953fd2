"""An environment with one more extra on top of this one's packages: some are too large for everybody."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

from tests.conftest import ROOT

__all__ = ["overlay", "packages_of"]


def overlay(folder: Path, extra: str) -> Path:
    """Return the Python of an environment with an extra, installed by pip where `folder` has none yet.

    Its own packages alone are in its site-packages; the others come from this environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    venv, made = folder / extra, folder / f"{extra}-made"
    with open(folder / f"{extra}-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
            parent = sysconfig.get_path("purelib")
            (packages_of(venv) / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            wanted = [
                r for r in project["optional-dependencies"][extra] if not r.startswith("deploy-runner[")
            ]
            command = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "-q",
                       "-c", str(ROOT / "constraints.txt"), *wanted]  # fmt: skip
            subprocess.run(command, check=True, timeout=540)
            made.touch()
    return venv / "bin/python"


def packages_of(venv: Path) -> Path:
    """Return an environment's site-packages."""
    return next(venv.glob("lib/python*/site-packages"))
