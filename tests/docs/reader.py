"""Somebody who follows a page: puts its blocks into files and types its commands, in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, clean_environment
from tests.serve.server import serving

__all__ = ["Block", "Reader", "blocks"]

_BLOCK = re.compile(r"^( *)```([\w-]+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:#|//|<!--) ([\w./-]+\.\w+)(?: -->)?$")
_FAILED = ("✗ ", "error: ", "FAIL ")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    kind: str
    text: str

    @property
    def file(self) -> str | None:
        """Return the file that the block's first line names; a block of YAML is a pipeline, or more of it."""
        if self.kind == "yaml":
            return "pipeline.yaml"
        found = _FILE.match(self.text.splitlines()[0])
        return found[1] if found else None

    @property
    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Return each command with the lines that are shown below it."""
        shown: list[str] = []
        command = ""
        for line in self.text.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, shown
                command, shown = line.removeprefix("$ "), []
            elif command.endswith("\\"):
                command = command[:-1] + line.strip()
            elif line.strip():
                shown.append(line)
        if command:
            yield command, shown


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    found = _BLOCK.findall(page.read_text())
    return [Block(kind, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)) for indent, kind, text in found]


class Reader:
    """A shell in the folder of a project that has the examples in it, and nothing else."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder.parent / "home").mkdir()
        shutil.copytree(ROOT / "examples", folder / "examples")
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._env = {**clean_environment(), **env, "PATH": programs, "HOME": str(folder.parent / "home")}
        self._server = ("", "")
        self._key = ""

    def follows(self, page: Path) -> int:
        """Do all that a page says; return the number of commands."""
        typed = 0
        with ExitStack() as servers:
            for block in blocks(page):
                if block.kind == "console":
                    for command, shown in block.commands:
                        self._types(command, shown, servers)
                        typed += 1
                else:
                    self.writes(block)
        return typed

    def writes(self, block: Block) -> str | None:
        """Write a block into its file, and return the name; further stages are added to the pipeline."""
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a" if block.text.startswith("  ") else "w") as file:
                file.write(re.sub(r"ed25519:[\w+/=]+", self._key, block.text) if self._key else block.text)
        return block.file

    def _types(self, command: str, shown: list[str], servers: ExitStack) -> None:
        if command.startswith("deploy-runner serve "):
            place = self.folder.parent / f"server-{len(list(self.folder.parent.iterdir()))}"
            words = shlex.split(command)[2:]
            server = servers.enter_context(serving(*words, folder=place, cwd=self.folder))
            self._server = ("http://127.0.0.1:8000", server.url)
            return
        if command.startswith("export "):
            done = self._bash(f"{command}; env -0", quiet=True)
            self._env = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if "=" in pair)
            return
        if command.startswith("pip install "):
            return  # The tests' environment has it; tests/first_hour installs into an empty one.
        done = self._bash(command.replace(*self._server) if self._server[0] else command)
        fails = any(line.startswith(_FAILED) for line in shown)
        assert (done.returncode != 0) == fails, f"$ {command}\n{done.stdout}"
        assert "Traceback" not in done.stdout, f"$ {command}\n{done.stdout}"
        self._key = (re.findall(r"public key of this machine: (\S+)", done.stdout) or [self._key])[0]
        printed = [_loose(line) for line in done.stdout.splitlines()]
        for line in shown:
            wanted = _loose(line)
            found = [
                p for p in printed if (p.startswith(wanted[:-1]) if wanted.endswith("…") else p == wanted)
            ]
            assert found, f"$ {command}\nthe page shows: {line}\nprinted was:\n{done.stdout}"

    def _bash(self, command: str, *, quiet: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self._env, text=True, check=False, timeout=900,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.STDOUT,
        )  # fmt: skip


def _loose(line: str) -> str:
    """Return a line without what differs from run to run: numbers, digests, times, widths of columns."""
    for pattern in (
        r"ed25519:[\w+/=]+",
        r"\d+\.\d+(e[-+]?\d+)?",
        r"\b(?=\w*\d)[0-9a-f]{6,}",
        r"\d+(e[-+]?\d+)?",
    ):
        line = re.sub(pattern, "#", line)
    line = re.sub(r"(# (h|min) )?# (ms|s|min|B|KiB|MiB)\b", "# unit", line.replace("#… →", "# →"))
    return " ".join(line.split())
