"""One call of torch's exporters, as a careful user writes it."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch

from . import building
from .entries import Entry, made
from .isolated import peak_bytes, reason

__all__ = ["WAYS", "export"]

WAYS = ("dynamo", "torchscript")


def export(entry: Entry, folder: Path, way: str, file: Path) -> dict[str, Any]:
    """Build the model and export it; return the seconds of CPU of both, and the peak of memory."""
    began = time.process_time()
    module = building.built(entry, folder)
    inputs = {name: torch.from_numpy(array) for name, array in made(entry, "the example").items()}
    dynamic = {name: axes for name, axes in entry.dynamic.items() if axes}
    options: dict[str, Any] = {"input_names": list(inputs), "dynamo": way == "dynamo", "verbose": False}
    if way == "dynamo":
        options["dynamic_shapes"] = {name: dynamic.get(name) for name in inputs} if dynamic else None
    else:
        options["dynamic_axes"] = dynamic
    args, kwargs = (tuple(inputs.values()), None) if entry.family != "transformers" else ((), inputs)
    started = time.process_time()
    failed = {}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, args, str(file), kwargs=kwargs, **options)
    except Exception as error:  # Whatever it is, the user has no file.
        failed = {"failed": reason(error)}
    ended = time.process_time()
    return {
        "build_seconds": started - began,
        "export_seconds": ended - started,
        "peak_bytes": peak_bytes(),
        **failed,
    }
