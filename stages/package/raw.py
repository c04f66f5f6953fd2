"""What a package needs to take raw input: the libraries, and the lines of the user's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["FORMS", "has_code", "libraries", "members", "own_requirements"]

_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "picture": ("pillow",),
    "text": ("tokenizers",),
    "sound": ("soundfile", "soxr"),
}
FORMS = "python-multipart"
"""What a server reads forms with."""


def libraries(io: Path | None) -> list[str]:
    """Return the distributions that an io artifact's kinds need in a server."""
    if io is None:
        return []
    spec = _read(io)
    found = {name for kind, names in _LIBRARIES.items() if kind in spec for name in names}
    if spec["answer"].get("kind") == "mask":
        found.add("pillow")
    return sorted({*found, FORMS})


def has_code(io: Path | None) -> bool:
    """Say whether an io artifact runs functions of the user's own."""
    from ...server.raw import rawio

    return io is not None and rawio.has_code(io)


def own_requirements(io: Path | None) -> list[str]:
    """Return the lines that the user's own functions need."""
    return [] if io is None else list(_read(io)["requirements"])


def members(io: Path | None) -> dict[str, Path]:
    """Return the members of a model.tar.gz: the artifact, and the code that reads raw input."""
    if io is None:
        return {}
    from ...server import raw

    runtime = sorted(Path(raw.__file__).parent.glob("*.py"))
    files = sorted(path for path in io.rglob("*") if path.is_file())
    return {f"code/raw/{path.name}": path for path in runtime} | {
        f"io/{path.relative_to(io).as_posix()}": path for path in files
    }


def _read(io: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads((io / "io.json").read_text("utf-8"))
    return spec
