"""What torch's safe unpickler is let read beyond its own list: values that training loops write.

NumPy's own constructors are not among it. They take a buffer for the pointers of an array of objects, and
a dtype's state for the layout of one: a file that may call them may read and call any address. Scalars
and arrays are rebuilt here instead, from a dtype that can only be a number, a date or a text.
"""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

_PLAIN = re.compile(r"[<>|=]?[biufcSUmM]\d{0,9}")
_UNIT = re.compile(r"[A-Za-z]{1,7}")


class NotPlain(pickle.UnpicklingError):
    """The file describes something else than a plain value."""


class DType:
    """A dtype as a pickle describes it: its name, then its byte order and unit."""

    def __init__(self, name: Any, *_: Any) -> None:
        """Take the name that numpy.dtype would get; its other arguments don't matter."""
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise NotPlain("a NumPy array of Python objects")
        self._name, self._unit = name, ""
        self._order: Literal["<", ">", "="] = "="

    def __setstate__(self, state: Any) -> None:
        """Take what numpy.dtype.__reduce__ gives: version, order, three of structured types, …, unit."""
        if not isinstance(state, tuple) or len(state) < 8 or state[2:5] != (None, None, None):
            raise NotPlain("a NumPy array of structures")
        self._order = state[1] if state[1] in ("<", ">") else "="
        if self._name.lstrip("<>|=").startswith(("m", "M")) and len(state) > 8:
            self._unit = _unit(state[8])

    def dtype(self) -> np.dtype[Any]:
        """Return NumPy's."""
        import numpy as np

        kind = np.dtype(self._name + self._unit).newbyteorder(self._order)
        if kind.hasobject or kind.kind not in "biufcSUmM":
            raise NotPlain("a NumPy array of Python objects")
        return kind


def _unit(metadata: Any) -> str:
    """Return `[25s]` of the metadata of a date: a mapping, then unit, count, and a fraction that is 1."""
    unit, count = metadata[1][:2]
    unit = unit.decode() if isinstance(unit, bytes) else unit
    if not isinstance(unit, str) or not isinstance(count, int) or not _UNIT.fullmatch(unit):
        raise NotPlain("a NumPy date without a known unit")
    return f"[{count}{unit}]" if unit != "generic" else ""


def _scalar(kind: Any, data: Any) -> Any:
    return _filled(kind, (), data)[()]


def _filled(kind: Any, shape: Any, data: Any) -> np.ndarray[Any, Any]:
    """Return an array of the bytes, which must be as many as the shape needs."""
    import numpy as np

    if not isinstance(kind, DType):
        raise NotPlain("a NumPy array without a dtype")
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes):
        raise NotPlain("a NumPy array of Python objects")
    dtype = kind.dtype()
    if not data:
        return np.zeros(0 if shape == (-1,) else shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape)


class Array:
    """An array as a pickle describes it; `item` and `size` are those of the array."""

    values: np.ndarray[Any, Any]

    def __init__(self, *_: Any) -> None:
        raise NotPlain("a NumPy array over a buffer")

    def __setstate__(self, state: Any) -> None:
        """Take version, shape, dtype, whether in Fortran order, and bytes."""
        _, shape, kind, fortran, data = state
        array = _filled(kind, (-1,), data)
        self.values = array.reshape(shape, order="F" if fortran else "C")

    @staticmethod
    def blank(*_: Any) -> Array:
        """Stand for numpy's _reconstruct, whatever kind of array it is asked for."""
        return object.__new__(Array)


def _no_bytes(*_: Any) -> bytes:
    """Stand for bytes(), by which a pickle of protocol 2 writes those of an empty array."""
    return b""


def _plain_mapping(*factory: Any) -> dict[Any, Any]:
    """Stand for a defaultdict, whose factory isn't needed to read it."""
    return {}


@functools.cache
def names() -> list[tuple[Callable[..., Any], str]]:
    """Return (what stands for it, its name in a pickle) of all that is let through.

    None of these calls anything that the file chooses, or looks at memory that it chooses.
    """
    import argparse
    import datetime
    import pathlib

    found: list[tuple[Callable[..., Any], str]] = [
        (DType, "numpy.dtype"),
        (Array, "numpy.ndarray"),
        (_no_bytes, "builtins.bytes"),
        (argparse.Namespace, "argparse.Namespace"),
        (_plain_mapping, "collections.defaultdict"),
    ]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found += [(_scalar, f"{module}.scalar"), (Array.blank, f"{module}._reconstruct")]
    found += [(pathlib.PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath")]
    found += [(pathlib.PureWindowsPath, f"pathlib.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone):
        found.append((kind, f"datetime.{kind.__name__}"))
    for builtin in (int, float, list, dict, str, bool):
        found.append((builtin, f"builtins.{builtin.__name__}"))
    return found
