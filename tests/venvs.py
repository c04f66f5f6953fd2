"""Environments of their own for what doesn't belong into ours: made by pip, once for those who share them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["made"]


def made(folder: Path, *requirements: str, beside: str = "") -> Path:
    """Make an environment with these packages, beside those of another folder; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    if beside:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "beside.pth").write_text(f"import site; site.addsitedir({beside!r})\n")
    subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True, capture_output=True)
    return python
