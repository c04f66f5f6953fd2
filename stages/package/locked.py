"""A requirements.txt with hashes: complete, and of the versions that were tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy_runner.sdk import StageError

__all__ = ["HASHES", "read"]

HASHES = "--require-hashes "
_MAKE = "`uv pip compile --generate-hashes`, or pip-compile, of the requirements.txt of a context without it"


def read(path: Path, tested: Sequence[str]) -> str:
    """Return the file's text, for a Dockerfile that installs it by `--require-hashes`.

    Raises StageError where a line has no hash, or where what was tested is missing or of another version.
    """
    text = path.read_text("utf-8").replace("\r\n", "\n")
    found = dict(_pin(line, path.name) for line in _lines(text))
    for name, version in (line.split("==") for line in tested if "==" in line and ";" not in line):
        if name not in found:
            raise StageError(f"{path.name} has no {name}, which the server needs", fix=_MAKE)
        if found[name] != version:
            said = f"{path.name} has {name} {found[name]}, but {version} is what was tested here"
            raise StageError(said, fix=_MAKE)
    return text if text.endswith("\n") else f"{text}\n"


def _lines(text: str) -> list[str]:
    """Return the requirements, each on one line; pip's own options, such as an index, are left out."""
    lines = [line.split(" #")[0].strip() for line in text.replace("\\\n", " ").split("\n")]
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def _pin(line: str, file: str) -> tuple[str, str]:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    text, *hashes = (part.strip() for part in line.split("--hash="))
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise StageError(f"{file}: {text!r} is no requirement: {error}") from None
    pins = [s.version for s in requirement.specifier if s.operator == "=="]
    if len(pins) != 1 or not all(one.startswith("sha256:") for one in hashes) or not hashes:
        raise StageError(f"{file}: {text!r} has no version, or no hash", fix=_MAKE)
    return canonicalize_name(requirement.name), pins[0].partition("+")[0]
