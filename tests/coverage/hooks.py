"""Count what forked and confined processes run: executed at the start of every measured Python process.

coverage.py measures a child process that inherits its environment and can write a data file when it ends.
A stage's worker does neither: the fork server starts from an empty environment, and a worker ends by
os._exit in a root folder of its own. So these hooks

- pass the configuration on to a child process whose environment is given,
- count a forked process anew, in memory, and open the file for its data at once, before it is confined,
- write the data before os._exit, before exec, and before each fork: the fork server ends by SIGKILL.

Not counted are what ends by SIGKILL, what a confined worker forks in its turn, since it can't open a file, and
what a container runs, which is a copy of our files.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from coverage import Coverage

ROOT = Path(__file__).parent.parent.parent
FORKED = "-forked-"
"""Follows the data file's name in that of a forked process; `coverage combine` looks for other names."""
_CONFIG, _START = "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"


class _Forked:
    """The coverage of a forked process: kept in memory, written to a file that is open already."""

    def __init__(self, data_file: str) -> None:
        name = f"{data_file}{FORKED}{os.getpid()}-{os.urandom(6).hex()}"
        self._fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        sources = [f"{ROOT}/deploy_runner", f"{ROOT}/stages"]
        self._coverage = Coverage(data_file=None, config_file=False, branch=True, source_dirs=sources)
        self._coverage.set_option("run:disable_warnings", ["no-data-collected", "trace-changed"])
        self._coverage.start()

    def save(self) -> None:
        """Replace the file's content by all that was counted so far."""
        os.pwrite(self._fd, self._coverage.get_data().dumps(), 0)


class _Hooks:
    """What this process counts by: its own data file, or that of a forked process."""

    def __init__(self, data_file: str) -> None:
        self._data_file = data_file
        self._forked: _Forked | None = None

    def begin(self) -> None:
        """Count anew in a process that was just forked."""
        with suppress(Exception):
            known = Coverage.current()
            if known is not None:
                known.stop()
            self._forked = None
            self._forked = _Forked(self._data_file)

    def save(self) -> None:
        """Write what this process has counted."""
        with suppress(Exception):
            known = self._forked or Coverage.current()
            if known is not None:
                known.save()

    def saving_first(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that saves, then calls another."""

        def save_and_call(*args: Any) -> Any:
            self.save()
            return function(*args)

        return save_and_call


def _passing_on(start: Callable[..., None]) -> Callable[..., None]:
    def start_measured(self: Any, *args: Any, env: Any = None, **options: Any) -> None:
        if env is not None and _CONFIG in os.environ and not {_CONFIG, _START} & set(env):
            env = {**env, _CONFIG: os.environ[_CONFIG]}
        start(self, *args, env=env, **options)

    return start_measured


def install() -> None:
    """Install the hooks in this process, for it and for what it forks."""
    measured = Coverage.current()
    if measured is None:
        return
    hooks = _Hooks(os.path.abspath(str(measured.get_option("run:data_file"))))
    os.register_at_fork(before=hooks.save, after_in_child=hooks.begin)
    for name in ("_exit", "execv", "execve"):
        setattr(os, name, hooks.saving_first(getattr(os, name)))
    setattr(subprocess.Popen, "__init__", _passing_on(subprocess.Popen.__init__))  # noqa: B010


if __name__ == "coverage_hooks":
    install()
