"""An environment of its own for every tool that is compared, made on first use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["HERE", "environment"]

HERE = Path(__file__).parent


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """Return the folder of a tool's programs; one made for other packages is made anew."""
    folder = HERE / ".envs" / name
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(packages):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check", *packages]
        subprocess.run(install, check=True)
        ready.write_text("\n".join(packages))
    return folder / "bin"
