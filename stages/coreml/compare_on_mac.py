"""Compare a Core ML package with the reference cases, on a Mac: python compare_on_mac.py model.mlpackage

It needs coremltools and numpy alone. Exit code 1 means that an output is too far from the original's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import coremltools
import numpy as np


def main(package: str) -> int:
    """Print how far each output is from the reference; return the exit code."""
    here = Path(__file__).parent
    limits = json.loads((here / "limits.json").read_text("utf-8"))
    arrays = np.load(here / "reference.npz", allow_pickle=False)
    units = coremltools.ComputeUnit.CPU_ONLY
    model = coremltools.models.MLModel(package, compute_units=units)
    worst = 0
    for case, allowed in limits.items():
        inputs = {
            name.split("/", 2)[2]: arrays[name] for name in arrays.files if name.startswith(f"{case}/in/")
        }
        answers = model.predict({name: _as_core_ml(array) for name, array in inputs.items()})
        for name, limit in allowed.items():
            expected, actual = arrays[f"{case}/out/{name}"], np.asarray(answers[name])
            far = _difference(actual.astype("f8"), expected.astype("f8"))
            right = far <= limit
            worst = max(worst, int(not right))
            print(f"{'ok  ' if right else 'FAIL'} {case} {name}: {far:.3g} of {limit:.3g}")  # noqa: T201
    return worst


def _difference(actual: Any, expected: Any) -> float:
    """Return the largest difference; infinite for other shapes and other places that are not finite."""
    if actual.shape != expected.shape:
        return float("inf")
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    found = np.abs(actual - expected)[~same]
    return float(np.nan_to_num(found, nan=np.inf).max(initial=0.0))


def _as_core_ml(array: Any) -> Any:
    """Return an array in a type that Core ML takes."""
    return array.astype("i4" if array.dtype.kind in "iu" else "f4")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
