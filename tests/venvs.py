"""Environments of their own for what doesn't belong into ours: made by pip, once for those who share them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["made"]


def made(folder: Path, *requirements: str) -> Path:
    """Make an environment with these packages; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True, capture_output=True)
    return python
