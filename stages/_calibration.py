"""Calibration samples, and the ranges that onnxruntime finds with them.

The ranges are computed in chunks, since the histogram methods otherwise keep every intermediate
tensor (about 7 MB a sample of a small CNN).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import StageError

from ._bundle import first_line, read_arrays

Method = Literal["minmax", "entropy", "percentile"]

_CHUNK = 10
_QUANTIZED_BINS = 128


class _Reader:
    """Hands out one chunk of samples, one batch of one at a time."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)


def read_samples(path: Path, inputs: list[str], limit: int | None) -> list[dict[str, Any]]:
    """Return the samples of an .npz, each as a batch of one by input name.

    An array is found by its input's name, or `x` for a model with one input. Raises StageError
    for what doesn't fit.
    """
    import numpy as np

    arrays = read_arrays(path)
    chosen: dict[str, Any] = {}
    for name in inputs:
        found = name if name in arrays else "x" if len(inputs) == 1 and "x" in arrays else ""
        if not found:
            raise StageError(
                f"the calibration data has no array {name!r}, it has {', '.join(arrays) or 'none'}"
            )
        chosen[name] = arrays[found]
    count = min(len(array) for array in chosen.values())
    if not count:
        raise StageError("the calibration data is empty")
    for name, array in chosen.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise StageError(f"the calibration data {name!r} has values that are not finite")
    total = min(count, limit or count)
    return [{n: np.ascontiguousarray(a[i : i + 1]) for n, a in chosen.items()} for i in range(total)]


def _chunks(samples: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(samples), _CHUNK):
        yield samples[start : start + _CHUNK]


def compute_ranges(
    model: Path,
    samples: list[dict[str, Any]],
    cache: Path,
    *,
    method: Method,
    bins: int,
    percentile: float,
) -> None:
    """Write the ranges of every tensor to `cache`, in onnxruntime's own JSON form."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    methods = {
        "minmax": (CalibrationMethod.MinMax, {}),
        # With the library's own default of 128 bins there is no threshold to search for: entropy
        # then gives the ranges of minmax.
        "entropy": (
            CalibrationMethod.Entropy,
            {"num_bins": bins, "num_quantized_bins": _QUANTIZED_BINS},
        ),
        "percentile": (CalibrationMethod.Percentile, {"num_bins": bins, "percentile": percentile}),
    }
    kind, options = methods[method]
    try:
        calibrator = create_calibrator(
            model,
            augmented_model_path=str(cache.with_name("augmented.onnx")),
            calibrate_method=kind,
            extra_options=options,
        )
        for chunk in _chunks(samples):
            calibrator.collect_data(_Reader(chunk))
        ranges = calibrator.compute_data()
    except Exception as error:
        raise StageError(f"the calibration fails: {first_line(error)}",
                         fix="do the samples have the model's shape and type?") from error  # fmt: skip
    save_tensors_data(ranges, cache)


def agreement(reference: Any, candidate: Any, samples: list[Mapping[str, Any]]) -> dict[str, float]:
    """Return how two models' outputs agree on samples: argmax agreement, max abs, cosine."""
    from ._bundle import Case
    from ._parity import compare

    cases = [Case(str(i), sample, reference(sample)) for i, sample in enumerate(samples)]
    parity = compare(cases, candidate, atol=0.0, rtol=0.0)
    return {
        "argmax_agreement": parity.argmax_agreement,
        "max_abs": parity.max_abs,
        "cosine": parity.cosine,
    }
