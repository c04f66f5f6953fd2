"""The name that a file of the project is imported by: its path, made of plain identifiers.

`2024/model.py` or `my-model/v1.2/net.py` are no names that a Python statement could hold, but TorchScript,
pickle and the exporters write a class's module down and read it again. And a folder `json/` without an
`__init__.py` doesn't hide the standard library's: what lies in it needs a name of its own.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.machinery import PathFinder

__all__ = ["is_installed", "module_name", "module_path"]

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_ODD = re.compile(r"[^A-Za-z0-9_]|^[0-9]")


def module_name(path: str) -> str:
    """Return the dotted name of a file, given by its path relative to the project, or of a folder.

    >>> module_name("v1.2/my-net.py")
    'v1_x2e_2.my_x2d_net'
    """
    first, *rest = (_identifier(part) for part in path.removesuffix(".py").split("/"))
    return ".".join([f"{first}_here" if is_installed(first) else first, *rest])


def module_path(path: str) -> str:
    """Return the relative path at which plain Python imports a project file under its module's name.

    It is the path itself unless that contains something that is not an identifier. Data files are placed
    beside the modules of their folder.
    """
    folder, _, name = path.rpartition("/")
    if path.endswith(".py"):
        return module_name(path).replace(".", "/") + ".py"
    return f"{module_name(folder).replace('.', '/')}/{name}" if folder else name


def is_installed(name: str) -> bool:
    """Say whether a top-level name is that of the standard library's or of an installed module."""
    if name in sys.stdlib_module_names:
        return True
    spec = PathFinder.find_spec(name)
    return spec is not None and not _INSTALLED.isdisjoint((spec.origin or "").split("/"))


def _identifier(part: str) -> str:
    plain = _ODD.sub(lambda odd: f"_x{ord(odd[0]):x}_", part)
    return f"{plain}_" if keyword.iskeyword(plain) else plain
