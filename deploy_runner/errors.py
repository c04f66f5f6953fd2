"""The errors that users read, with their exit codes.

    DeployRunnerError            exit 1   base: message, fix
    ├── SpecError                exit 2   every Problem of a pipeline, gathered
    ├── UsageError               exit 2   a wrong command line or argument
    ├── StageError               exit 1   a stage could not produce its outputs
    │   └── GateError            exit 1   a check rejected a stage's result
    ├── ConflictError            exit 3   the remote has different content under this name
    └── StoreError               exit 1   the store cannot be read or written

Every class keeps its data in attributes and can be pickled, because workers send errors to another
process.
"""

from __future__ import annotations

import os
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
    "closest_path",
    "counted",
    "cut",
    "shortened",
]


_ALIKE = 0.75
"""How alike names of files are before one is meant for the other: most endings are equal."""


class Problem(NamedTuple):
    """One error in a pipeline file: what is wrong, where, and how to fix it."""

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    fix: str = ""

    @property
    def where(self) -> str:
        """`file:line:column`, without the parts that are unknown."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f" ({self.fix})" if self.fix else ""
        return f"{prefix}{self.message}{suffix}"


class DeployRunnerError(Exception):
    """The base class of all errors for users. `fix` says in one sentence what to do."""

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
    """Every problem of a pipeline, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        ordered = sorted(problems, key=lambda p: (p.file, p.line, p.column))
        super().__init__("\n".join(str(problem) for problem in ordered))
        self.problems = tuple(ordered)


class UsageError(DeployRunnerError):
    """A wrong argument or a missing file on the command line."""

    exit_code = 2


class StageError(DeployRunnerError):
    """A stage could not produce its outputs. The executor sets `stage`."""

    def __init__(self, message: str, *, fix: str = "", stage: str = "") -> None:
        super().__init__(message, fix=fix)
        self.stage = stage


class GateError(StageError):
    """A check rejected a stage's result; the measured figures are in the run record."""


class ConflictError(DeployRunnerError):
    """The remote already has different content under the name to be published."""

    exit_code = 3


class StoreError(DeployRunnerError):
    """The store cannot be read or written: the disk is full or read-only, or permission is missing."""


_LOOKED_AT, _COMPARED, _LONGEST = 2000, 100, 100
_SHOWN = 80


def closest(name: str, known: Iterable[str]) -> str:
    """Return the fix "did you mean 'x'?" for the nearest known spelling, in capitals or not, or nothing.

    It takes a limited time: of many names those are compared that begin and end most alike, and very long
    ones are not.
    """
    from difflib import get_close_matches
    from heapq import nlargest
    from itertools import islice

    if len(name) > _LONGEST:
        return ""
    meant = name.casefold()
    spelled = {k.casefold(): k for k in islice((k for k in known if len(k) <= _LONGEST), _LOOKED_AT)}
    names = list(spelled)
    if len(names) > _COMPARED:
        names = nlargest(_COMPARED, names, key=lambda k: _shared(meant, k) + _shared(meant[::-1], k[::-1]))
    near = get_close_matches(meant, names, n=1)
    return f"did you mean {spelled[near[0]]!r}?" if near else ""


def counted(number: int, noun: str) -> str:
    """Return a number with a noun that takes an s: "1 stage", "2 stages", "1,000 stages"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cut(value: object) -> str:
    """Return a value as a sentence shows it: not all of a very long one."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Return a text as a sentence shows it: not all of a very long one."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _shared(one: str, other: str) -> int:
    """Return how long the beginning is that two names share."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _rebuild(
    cls: type[DeployRunnerError], args: tuple[object, ...], state: dict[str, object]
) -> DeployRunnerError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


def closest_path(path: str | os.PathLike[str]) -> str:
    """Return the fix "did you mean 'a/b'?" for the existing path nearest to a missing one, or nothing."""
    from difflib import get_close_matches

    found = ""
    for part in os.fspath(path).split(os.sep):
        place = os.path.join(found, part) if found or part else os.sep
        if not os.path.exists(place):
            try:
                near = get_close_matches(part, os.listdir(found or "."), n=1, cutoff=_ALIKE)
            except OSError:
                return ""
            if not near:
                return ""
            place = os.path.join(found, near[0])
        found = place
    return f"did you mean {found!r}?"
