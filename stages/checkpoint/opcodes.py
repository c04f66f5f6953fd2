"""What a pickle names and fills, read from its opcodes without running them."""

from __future__ import annotations

import _compat_pickle
import contextlib
import pickletools
import zipfile
from dataclasses import dataclass, field
from typing import IO, Any

from deploy_runner.sdk import StageError

_MOST_LETTERS = 1000
_KEEPING = ("NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "SETITEM", "SETITEMS", "APPEND", "APPENDS")
"""What takes an object, or the class or function that makes it, and leaves the object."""


@dataclass
class Seen:
    """`module.name` of all that a pickle would import, and of the classes whose objects it fills."""

    names: set[str] = field(default_factory=set)
    mappings: set[str] = field(default_factory=set)
    """With keys and values: they are kinds of dict."""
    lists: set[str] = field(default_factory=set)
    """With items: they are kinds of list."""


def scan(file: IO[bytes], pickles: int) -> Seen:
    """Return what a number of pickles have, that lie one after the other.

    What is damaged ends it: whoever loads the file tells that apart. Raises StageError for names that
    nobody gives to anything: torch looks through its own error message by a pattern that takes hours then.
    """
    seen = Seen()
    stream: Any = file
    with contextlib.suppress(OSError, ValueError, EOFError, OverflowError, zipfile.BadZipFile):
        for _ in range(pickles):
            stack: _Stack | None = _Stack(seen)
            for opcode, argument, _ in pickletools.genops(stream):
                name = _known(str(argument)) if opcode.name in ("GLOBAL", "INST") else None
                if name:
                    seen.names.add(name)
                try:
                    if stack is not None:
                        stack.step(opcode, argument, name)
                except (IndexError, KeyError):
                    stack = None  # No pickler writes this; the names after it are still read.
    return seen


class _Stack:
    """The unpickler's stack with, for each object, the name of what made it."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._items: list[str | None] = []
        self._below: list[list[str | None]] = []
        self._memo: dict[Any, str | None] = {}

    def step(self, opcode: Any, argument: Any, name: str | None) -> None:
        """Do what an opcode does to the stack. Raises IndexError or KeyError where it can't."""
        if opcode.name == "MARK":
            self._below.append(self._items)
            self._items = []
            return
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = self._items[-1]
            return
        if "GET" in opcode.name:
            self._items.append(self._memo[argument])
            return
        taken = self._take(opcode.stack_before)
        if opcode.name in _KEEPING:
            name = taken[0]
        if name and opcode.name in ("SETITEM", "SETITEMS"):
            self._seen.mappings.add(name)
        elif name and opcode.name in ("APPEND", "APPENDS"):
            self._seen.lists.add(name)
        self._items += [name] * len(opcode.stack_after)

    def _take(self, before: list[Any]) -> list[str | None]:
        count = len(before)
        if pickletools.markobject in before:
            count = before.index(pickletools.markobject)
            self._items = self._below.pop()
        if count > len(self._items):
            raise IndexError
        taken = self._items[len(self._items) - count :]
        del self._items[len(self._items) - count :]
        return taken


def _known(argument: str) -> str:
    """Return a name as Python 3 has it, which is how torch reads those of Python 2."""
    if len(argument) > _MOST_LETTERS:
        raise StageError(f"the checkpoint's pickle is rejected: it contains a name of {len(argument):,} "
                         "characters; nothing was executed")  # fmt: skip
    module, _, name = argument.partition(" ")
    mapped = _compat_pickle.NAME_MAPPING.get((module, name))
    return ".".join(mapped or (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
