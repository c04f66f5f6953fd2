"""Stand before the functions by which Python code looks whether a file exists, and how it is.

`os.path.exists`, `Path.is_file`, `shutil` and the libraries all call them by their names in `os`; the
import system doesn't, so that what it looks for is not seen here. There is no audit event for any of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["stand_before"]

_LOOKUPS = ("stat", "lstat", "access", "readlink")
_ABILITIES = ("supports_dir_fd", "supports_effective_ids", "supports_fd", "supports_follow_symlinks")


class _Instead(Protocol):
    def __call__(self, path: object, *, missing: bool) -> str | None: ...


def stand_before(instead: _Instead, near: tuple[str, ...]) -> None:
    """Ask `instead` of each path that is looked for: before, and again where it doesn't exist.

    It may name another path to look at. Of absolute paths only those that begin with one of `near` are asked.
    """
    for name in _LOOKUPS:
        _wrap(name, instead, near)


def _wrap(name: str, instead: _Instead, near: tuple[str, ...]) -> None:
    original: Callable[..., Any] = getattr(os, name)

    @functools.wraps(original)
    def lookup(path: Any, *args: Any, **options: Any) -> Any:
        elsewhere = type(path) is str and path[:1] == os.sep and not path.startswith(near)
        if elsewhere or options.get("dir_fd") is not None:
            return original(path, *args, **options)
        other = instead(path, missing=False)
        try:
            found = original(path if other is None else other, *args, **options)
        except (FileNotFoundError, NotADirectoryError):
            other = instead(path, missing=True)
            if other is None:
                raise
            return original(other, *args, **options)
        if found is False and (other := instead(path, missing=True)) is not None:
            return original(other, *args, **options)
        return found

    lookup.__module__ = "os"
    for ability in _ABILITIES:
        known = getattr(os, ability)
        if original in known:
            known.add(lookup)
    setattr(os, name, lookup)
