"""The file of an io artifact, read without what it declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["FILE", "has_code", "read"]

FILE = "io.json"


def read(folder: Path) -> dict[str, Any]:
    """Return what an artifact declares. Raises OSError, and ValueError where it isn't JSON."""
    spec: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    return spec


def has_code(spec: Mapping[str, Any]) -> bool:
    """Say whether opening it runs functions of its maker's own."""
    return "python" in spec or "postprocess" in spec["answer"]
