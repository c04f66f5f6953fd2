"""What a pickle names, read from its opcodes without running them."""

from __future__ import annotations

import _compat_pickle
import contextlib
import pickletools
import zipfile
from typing import IO, Any

from deploy_runner.sdk import StageError

_MOST_LETTERS = 1000


def names(file: IO[bytes], pickles: int) -> set[str]:
    """Return `module.name` of everything that a number of pickles, one after the other, would import.

    What is damaged ends it: whoever loads the file tells that apart. Raises StageError for names that
    nobody gives to anything: torch looks through its own error message by a pattern that takes hours then.
    """
    found: set[str] = set()
    stream: Any = file
    with contextlib.suppress(OSError, ValueError, EOFError, OverflowError, zipfile.BadZipFile):
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    found.add(_known(str(argument)))
    return found


def _known(argument: str) -> str:
    """Return a name as Python 3 has it, which is how torch reads those of Python 2."""
    if len(argument) > _MOST_LETTERS:
        raise StageError(f"the checkpoint's pickle is rejected: it contains a name of {len(argument):,} "
                         "characters; nothing was executed")  # fmt: skip
    module, _, name = argument.partition(" ")
    mapped = _compat_pickle.NAME_MAPPING.get((module, name))
    return ".".join(mapped or (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
