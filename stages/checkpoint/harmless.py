"""What torch's safe unpickler is let read beyond its own list: values that training loops write.

Objects of the user's and other libraries' classes are in no list: `stand_ins` makes empty objects of them,
so that the weights beside them can be read.

NumPy's own constructors are not among it. They take a buffer for the pointers of an array of objects, and
a dtype's state for the layout of one: a file that may call them may read and call any address. Scalars
and arrays are rebuilt here instead, from a dtype that can only be a number, a date or a text.
"""

from __future__ import annotations

import functools
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, Literal

from . import opcodes

if TYPE_CHECKING:
    import numpy as np

_PLAIN = re.compile(r"[<>|=]?[biufcSUmM]\d{0,9}")
_UNIT = re.compile(r"[A-Za-z]{1,7}")
_MOST_CLASSES = 500


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


class Partial:
    """A functools.partial as a pickle describes it: nothing is kept of it."""

    def __init__(self, function: Any) -> None:
        """Take the function, which is never called."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the arguments."""


class Nested:
    """An io.BytesIO as a pickle describes it."""

    content = b""

    def __setstate__(self, state: Any) -> None:
        """Take its bytes, then its position and attributes, which don't matter."""
        if not isinstance(state, tuple) or not state or not isinstance(state[0], bytes):
            raise NotPlain("an io.BytesIO without bytes")
        self.content = state[0]


class Unread:
    """An object of a class that is not imported: its state is dropped."""

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        """Ignore the arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Ignore the arguments."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class UnreadMapping:
    """A kind of dict whose class is not imported."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Return what torch lets be filled, and given attributes."""
        return OrderedDict()


class UnreadList:
    """A kind of list whose class is not imported."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Return what torch lets be filled."""
        return []


class Reference:
    """A function or a class that is mentioned, not called."""

    def __new__(cls, *_: Any) -> Reference:
        """Refuse to be called."""
        raise NotPlain(f"a call of {cls.__name__}")


_MENTIONED = ("torch.nn", "torch.optim", "typing", "uuid", "decimal", "fractions")
"""What lies beside weights and in configurations, of libraries whose other names are judged one by one."""
_ONE_BY_ONE = frozenset({*sys.stdlib_module_names, "torch", "numpy", "__builtin__", "imp", "distutils"})


def stand_ins(seen: opcodes.Seen, known: Set[str]) -> list[tuple[type[Any], str]]:
    """Return a class for each further name that a pickle may mention, without anything of it being imported.

    An object of the user's, of another library's or of torch.nn is then an empty one, or where it is a
    kind of dict or list a plain one; functions may not be called. Of the standard library, torch and
    NumPy nothing else is among them: who calls that means it.
    """
    found = []
    for name in sorted(seen.names - known):
        base = _stand_in(name)
        if base is Unread:
            base = UnreadMapping if name in seen.mappings else UnreadList if name in seen.lists else Unread
        if base is not None:
            found.append((type(name, (base,), {}), name))
    return found if len(found) <= _MOST_CLASSES else []


def _stand_in(name: str) -> type[Any] | None:
    module, _, last = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    mentioned = any(module == known or module.startswith(f"{known}.") for known in _MENTIONED)
    if not mentioned and module.partition(".")[0] in _ONE_BY_ONE:
        return None
    return Unread if last[:1].isupper() else Reference


def _no_bytes(*_: Any) -> bytes:
    """Stand for bytes(), by which a pickle of protocol 2 writes those of an empty array."""
    return b""


def _plain_mapping(*factory: Any) -> dict[Any, Any]:
    """Stand for a defaultdict, whose factory isn't needed to read it."""
    return {}


def _plain_list(*_: Any) -> list[Any]:
    """Stand for a deque, whose items follow."""
    return []


@functools.cache
def names() -> list[tuple[Callable[..., Any], str]]:
    """Return (what stands for it, its name in a pickle) of all that is let through.

    None of these calls anything that the file chooses, or looks at memory that it chooses.
    """
    import argparse
    import datetime
    import pathlib
    import types

    from torch.torch_version import TorchVersion

    found: list[tuple[Callable[..., Any], str]] = [
        (DType, "numpy.dtype"),
        (Array, "numpy.ndarray"),
        (_no_bytes, "builtins.bytes"),
        (argparse.Namespace, "argparse.Namespace"),
        (types.SimpleNamespace, "types.SimpleNamespace"),
        (_plain_mapping, "collections.defaultdict"),
        (_plain_list, "collections.deque"),
        (Partial, "functools.partial"),
        (Nested, "_io.BytesIO"),
        (TorchVersion, "torch.torch_version.TorchVersion"),
    ]
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        found += [(_scalar, f"{module}.scalar"), (Array.blank, f"{module}._reconstruct")]
    for module in ("pathlib", "pathlib._local"):  # The second is Python 3.13's.
        found += [(pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")]
        found += [
            (pathlib.PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")
        ]
    for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone):
        found.append((kind, f"datetime.{kind.__name__}"))
    for builtin in (int, float, list, dict, str, bool, frozenset, range, slice):
        found.append((builtin, f"builtins.{builtin.__name__}"))
    return found
