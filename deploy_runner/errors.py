"""The one tree of errors, and the one place where their sentences are made.

    DeployRunnerError            exit 1   base: message, fix
    ├── SpecError                exit 2   every Problem of a pipeline, gathered
    ├── UsageError               exit 2   a wrong command line or argument
    ├── StageError               exit 1   a stage could not make its outputs
    │   └── GateError            exit 1   a check refused what a stage made
    ├── ConflictError            exit 3   a remote holds something else under our name
    └── StoreError               exit 1   the store cannot be read or written

Every class keeps its data in attributes and survives pickling, because workers send errors
across processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = [
    "ConflictError",
    "DeployRunnerError",
    "GateError",
    "Problem",
    "SpecError",
    "StageError",
    "StoreError",
    "UsageError",
    "closest",
]


class Problem(NamedTuple):
    """One thing that is wrong in a pipeline file: what, where, and how to mend it."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    fix: str = ""

    @property
    def where(self) -> str:
        """Return `file:line:column`, as far as it is known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f" ({self.fix})" if self.fix else ""
        return f"{prefix}{self.message}{suffix}"


class DeployRunnerError(Exception):
    """The base of all errors that a user can read. `fix` says what to do, in one sentence."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} ({self.fix})" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args, self.__dict__))


class SpecError(DeployRunnerError):
    """All problems of a pipeline file at once, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        ordered = sorted(problems, key=lambda p: (p.file, p.line, p.column))
        super().__init__("\n".join(str(problem) for problem in ordered))
        self.problems = tuple(ordered)


class UsageError(DeployRunnerError):
    """A wrong argument or a missing file on the command line."""

    exit_code = 2


class StageError(DeployRunnerError):
    """A stage could not make its outputs. `stage` is filled in by the executor."""

    def __init__(self, message: str, *, fix: str = "", stage: str = "") -> None:
        super().__init__(message, fix=fix)
        self.stage = stage


class GateError(StageError):
    """A check refused what a stage made; the measured figures are in the run record."""


class ConflictError(DeployRunnerError):
    """A remote holds something else under the name that we would publish."""

    exit_code = 3


class StoreError(DeployRunnerError):
    """The store cannot be read or written: a full or read-only disk, a missing right."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the fix "did you mean 'x'?" for the nearest known spelling, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _rebuild(
    cls: type[DeployRunnerError], args: tuple[object, ...], state: dict[str, object]
) -> DeployRunnerError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error
