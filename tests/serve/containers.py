"""A build context read as Docker reads it, and started without Docker: its environment, its entry point."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.serve.server import Server, listening

__all__ = ["entry_point", "environment", "instructions", "started"]


def instructions(context: Path, word: str) -> list[str]:
    """Return what follows an instruction's word in the Dockerfile, each time that it is there."""
    text = (context / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.removeprefix(word).strip() for line in text.splitlines() if line.startswith(f"{word} ")]


def environment(context: Path) -> dict[str, str]:
    """Return the server's options that the image sets."""
    (options,) = (line for line in instructions(context, "ENV") if line.startswith("SERVE_"))
    found = re.findall(r'([A-Z_]+)="((?:[^"\\]|\\.)*)"', options)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}


def entry_point(context: Path) -> list[str]:
    """Return the image's command line. It has no CMD: whatever is given to `docker run` follows."""
    assert instructions(context, "CMD") == []
    (line,) = instructions(context, "ENTRYPOINT")
    command: list[str] = json.loads(line)
    return command


@contextmanager
def started(
    context: Path,
    folder: Path,
    *arguments: str,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run the entry point on a copy of what the image has, on a free port; `env` is `docker run -e`."""
    place = folder / "srv"
    for part in ("app", "model"):
        shutil.copytree(context / part, place / part)
    given = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | environment(context)
    given |= {"SERVE_JSON": "1", "SERVE_PORT": "0", **(env or {})}
    command = [python, *entry_point(context)[1:], *arguments]
    with listening(command, folder=folder, cwd=place, env=given) as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        yield server
