"""Functions of the user's own that read raw input, or make the answer."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .problems import BadInput

__all__ = ["CODE", "Python", "function"]

CODE = "code"
"""The folder of the user's modules, by their path in the project."""
_LOADING = threading.Lock()


class Python:
    """What `preprocess` makes of raw input: text, bytes, or a value of JSON.

    It returns the tensors of one sample by input name, or the only one's, without the axis of the samples.
    A ValueError of it is told to the sender.
    """

    field = "data"

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self._tensors: Sequence[str] = spec["tensors"]
        self._preprocess = function(spec["preprocess"], folder)

    def arrays(self, given: Sequence[Any]) -> dict[str, Any]:
        """Return the inputs, samples along axis 0. Raises BadInput."""
        found = [self._one(one) for one in given]
        try:
            return {name: np.stack([one[name] for one in found]) for name in self._tensors}
        except ValueError:
            shapes = sorted({str(one[name].shape) for one in found for name in self._tensors})
            raise BadInput(f"the samples of a request have different sizes: {', '.join(shapes)}") from None

    def _one(self, given: Any) -> dict[str, Any]:
        try:
            found = self._preprocess(given)
        except (ValueError, KeyError, TypeError) as error:
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadInput(f"preprocess refuses the input: {said}") from None
        named = found if isinstance(found, Mapping) else {self._tensors[0]: found}
        missing = [name for name in self._tensors if name not in named]
        if missing:
            raise BadInput(f"preprocess returned no {missing[0]!r}, only {', '.join(map(str, named))}")
        return {name: np.asarray(named[name]) for name in self._tensors}


def function(code: str, folder: Path) -> Any:
    """Return what `path/to/file.py:name` names in the folder's code. Its other modules can be imported.

    Raises whatever the import raises, FileNotFoundError for a module of another place, and AttributeError
    where nothing has the name.
    """
    path, _, name = code.partition(":")
    root = str(folder / CODE)
    if not (folder / CODE / path).is_file():
        raise FileNotFoundError(f"{path} is not in the artifact")
    with _LOADING:
        sys.path.insert(0, root)
        try:
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        finally:
            sys.path.remove(root)
    return getattr(module, name)
