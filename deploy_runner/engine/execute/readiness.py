"""What a worker answers that is asked whether its stage can run here: the modules that can't be imported."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Mapping
from typing import Any

__all__ = ["READY", "refused"]

READY = "ready"
"""The verb of the question; its `modules` are one a line."""


def refused(question: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return module → why it can't be imported ("" where it is missing), and the file that says so."""
    found = {}
    for name in filter(None, question["modules"].split("\n")):
        try:
            importlib.import_module(name)
        except BaseException as error:  # A broken package raises anything, SystemExit too.
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
            found[name] = ["", ""] if missing else _said(error)
    return found


def _said(error: BaseException) -> list[str]:
    frames = [f.filename for f in traceback.extract_tb(error.__traceback__) if os.path.isabs(f.filename)]
    return [f"{type(error).__name__}: {error}".partition("\n")[0], frames[-1] if frames else ""]
