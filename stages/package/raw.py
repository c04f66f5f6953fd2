"""What a package needs to take raw input: the libraries, and the lines of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.opened_io import read_spec

if TYPE_CHECKING:
    from ...server.raw import rawio  # noqa: F401 - so that the key holds the source of what is packed

__all__ = ["FORMS", "files", "has_code", "libraries", "members", "own_requirements"]

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
    spec = read_spec(io)
    found = {name for kind, names in _LIBRARIES.items() if kind in spec for name in names}
    if spec["answer"].get("kind") == "mask":
        found.add("pillow")
    return sorted({*found, FORMS})


def has_code(io: Path | None) -> bool:
    """Say whether an io artifact runs functions of the user's own."""
    from ...server.raw import spec

    return io is not None and spec.has_code(read_spec(io))


def own_requirements(io: Path | None) -> list[str]:
    """Return the lines that the user's own functions need."""
    return [] if io is None else list(read_spec(io)["requirements"])


def files(io: Path) -> dict[str, Path]:
    """Return an artifact's files by their path beside a model."""
    found = sorted(path for path in io.rglob("*") if path.is_file())
    return {f"io/{path.relative_to(io).as_posix()}": path for path in found}


def members(io: Path | None) -> dict[str, Path]:
    """Return the members of a model.tar.gz: the artifact, and the code that reads raw input."""
    if io is None:
        return {}
    from ...server import raw

    runtime = sorted(Path(raw.__file__).parent.glob("*.py"))
    return {f"code/raw/{path.name}": path for path in runtime} | files(io)
