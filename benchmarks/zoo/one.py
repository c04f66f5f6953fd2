"""Convert models of the zoo in every way, each in a process of its own, and print what came of it."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx  # noqa: F401 - as the product's workers do, before a clock runs
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch.onnx  # noqa: F401

from . import bare, building, product, truth
from .entries import Entry
from .isolated import apart
from .zoo import ENTRIES

__all__ = ["converted"]

_SECONDS = 300


def converted(entry: Entry, folder: Path) -> dict[str, Any]:
    """Return what each way made of a model, and what its file computes."""
    started = time.monotonic()
    result: dict[str, Any] = {"name": entry.name, "family": entry.family}
    result |= apart(
        lambda: truth.write(entry, building.saved(entry, folder), folder), folder / "truth.json", _SECONDS
    )
    result["bare"] = {way: _bare(entry, way, folder) for way in bare.WAYS}
    result["product"] = _by_product(entry, folder)
    result["seconds"] = time.monotonic() - started
    return result


def _bare(entry: Entry, way: str, folder: Path) -> dict[str, Any]:
    place = folder / way
    place.mkdir()
    file = place / "model.onnx"
    said = apart(lambda: bare.export(entry, folder, way, file), place / "said.json", _SECONDS)
    if "failed" not in said:
        said |= apart(lambda: truth.check(file, folder, by_name=False), place / "check.json", _SECONDS)
    return said


def _by_product(entry: Entry, folder: Path) -> dict[str, Any]:
    product.write_project(entry, folder)
    said = apart(lambda: product.run(folder), folder / "product.json", 2 * _SECONDS)
    if said.get("stages", {}).get("onnx", {}).get("state") == "ran":
        file = product.fetched(folder, folder / "made")
        said |= apart(lambda: truth.check(file, folder, by_name=True), folder / "check.json", _SECONDS)
    return said


def main() -> None:
    """Convert the models that are named, each in a temporary folder; print a line for each."""
    known = {entry.name: entry for entry in ENTRIES}
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            print(json.dumps(converted(known[name], Path(folder))), flush=True)


if __name__ == "__main__":
    main()
