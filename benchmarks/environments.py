"""An environment of its own for every tool that is compared, made on first use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["HERE", "environment"]

HERE = Path(__file__).parent


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """Return the folder of a tool's programs; one made for other packages is made anew.

    A package that is a folder is installed again each time, since its code may have changed.
    """
    folder = HERE / ".envs" / name
    ready = folder / "ready"
    install = [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check"]
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*install, *packages], check=True)
        ready.write_text("\n".join(packages))
    elif folders := [package for package in packages if Path(package).is_dir()]:
        subprocess.run([*install, "--no-deps", "--force-reinstall", *folders], check=True)
    return folder / "bin"
