"""Ask what only a verb can answer, because it asks the network or takes a lock: it runs as a process.

Its credentials stay in that process; what it prints as JSON is all that comes back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from ..errors import counted

__all__ = ["Answer", "Asker"]

_LIMIT_S = 300.0


class Answer(NamedTuple):
    """What a verb printed, or the sentence why it printed nothing."""

    value: dict[str, Any]
    error: str = ""


class Asker:
    """Runs one verb at a time; `stop` ends the one that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._one = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, words: Sequence[str]) -> Answer:
        """Return what `deploy-runner WORDS --json` prints."""
        if not self._one.acquire(blocking=False):
            return Answer({}, "another question is being answered; ask again when that has ended")
        try:
            return self._answer([sys.executable, "-P", "-m", "deploy_runner", *words, "--json"])
        finally:
            self._one.release()

    def _answer(self, command: list[str]) -> Answer:
        environ = {name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"}
        self._process = subprocess.Popen(
            command, cwd=self._folder, env=environ, process_group=0, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            printed, _ = self._process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            self._process.communicate()
            return Answer({}, f"no answer came within {counted(int(_LIMIT_S), 'second')}")
        finally:
            code, self._process = self._process.returncode, None
        lines = printed.decode(errors="replace").splitlines()
        try:
            value = json.loads(lines[-1]) if lines else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            return Answer({}, f"the command ended with {code} and printed no answer")
        return Answer(value, str(value["error"])) if "error" in value else Answer(value)

    def stop(self) -> None:
        """End the verb that runs, if one does."""
        process = self._process
        if process is not None:
            process.kill()
