"""Compare what an io artifact makes of raw files with what the training code makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy_runner.sdk import GateError, StageError, first_line

from ...server.raw import rawio
from ...server.raw.problems import BadInput
from .bundles import Bundle
from .wording import user_line

__all__ = ["Golden", "check", "raw_files", "same"]

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_MOST = 200
_MOST_OF_IT, _NEAR = 0.25, 0.05
"""A cause leaves this share of the difference, and is this near, by the largest value."""

Golden = Callable[[str], Any]
"""A raw file's path → the tensors of the training code, or its final answer."""
Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def raw_files(folder: Path) -> list[Path]:
    """Return the raw files in a folder, in order. Raises StageError where there is none."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    if not found:
        raise StageError("the folder of golden files is empty")
    return found[:_MOST]


def check(io: rawio.RawIo, files: list[Path], golden: Golden, run: Run, tolerance: float) -> dict[str, Any]:
    """Compare every file; return the figures.

    Tensors may differ by `tolerance` times the largest of them, scores of an answer by that. Raises
    GateError with the file, and the step that the training code takes otherwise where one is found.
    """
    worst = 0.0
    answers = 0
    for file in files:
        sample = sample_of(file, io)
        try:
            ours = io.arrays([sample])
        except BadInput as error:
            raise GateError(f"{file.name}: {error}") from None
        theirs = _theirs(golden, file)
        tensors = _tensors(theirs, ours)
        if tensors is None:
            answers += 1
            _check_answer(file.name, theirs, io.answers(run(ours), ours)[0], tolerance)
            continue
        off = {name: _off(ours[name], array) for name, array in tensors.items()}
        name = max(off, key=lambda key: off[key])
        worst = max(worst, off[name])
        if off[name] > tolerance:
            said = _how(ours[name], tensors[name], off[name])
            raise GateError(f"{file.name}: the tensor {name!r} differs from the training code's: {said}",
                            fix=_cause(io, sample, tensors, tolerance, off[name]))  # fmt: skip
    return {"golden_files": len(files), "golden_answers": answers, "golden_max_rel": worst}


def sample_of(file: Path, io: rawio.RawIo) -> dict[str, Any]:
    """Return a file as a sample: pictures, sounds and texts by its suffix, or fields in JSON."""
    suffix, fields = file.suffix.lower(), io.kinds.fields
    if suffix == ".json" and "data" not in fields:
        from ...server.raw.requests import of_json

        try:
            given = of_json(json.loads(file.read_text("utf-8")), io.kinds)
        except (ValueError, BadInput) as error:
            raise StageError(f"{file.name} is no sample: {first_line(error)}") from None
        if given is None or not given.alone:
            raise StageError(f"{file.name} is no sample of {', '.join(fields)}")
        return dict(given.samples[0])
    if suffix == ".txt":
        value: Any = file.read_text("utf-8")
    else:
        value = json.loads(file.read_text("utf-8")) if suffix == ".json" else file.read_bytes()
    kind = "image" if suffix in _PICTURES else "audio" if suffix in _SOUNDS else "text"
    field = kind if kind in fields else "data" if "data" in fields else ""
    if not field:
        raise StageError(f"{file.name} is none of {', '.join(fields)}",
                         fix="use pictures, .txt, or .json with a sample")  # fmt: skip
    return {field: value}


def _theirs(golden: Golden, file: Path) -> Any:
    try:
        return golden(str(file))
    except ModuleNotFoundError:
        raise
    except Exception as error:
        said = f"golden fails on {file.name}: {type(error).__name__}: {first_line(error)}{user_line(error)}"
        raise StageError(said) from error


def _tensors(theirs: Any, ours: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the training code's tensors by input, None where it gave an answer."""
    if isinstance(theirs, Mapping):
        found = {name: _array(value) for name, value in theirs.items() if name in ours}
        return found if found and all(array is not None for array in found.values()) else None
    array = _array(theirs)
    return None if array is None else {next(iter(ours)): array}


def _array(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = np.array(value)
    return value if isinstance(value, np.ndarray) and value.ndim else None


def _off(ours: Any, theirs: Any) -> float:
    """Return the largest difference as a share of the largest value; infinite for other shapes."""
    import numpy as np

    if theirs.shape == ours.shape[1:]:
        theirs = theirs[None]
    if theirs.shape != ours.shape:
        return float("inf")
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    return float(difference / max(float(np.abs(theirs).max(initial=0.0)), 1e-12)) if difference else 0.0


def _how(ours: Any, theirs: Any, off: float) -> str:
    import numpy as np

    if off == float("inf"):
        return f"its shape is {list(theirs.shape)}, ours {list(ours.shape)}"
    if theirs.dtype.kind in "iub":
        place = tuple(int(i) for i in np.argwhere(ours != theirs.reshape(ours.shape))[0])
        return f"at {list(place)} it is {theirs.reshape(ours.shape)[place]}, ours {ours[place]}"
    return f"by {off:.3g} of its largest value"


def _cause(
    io: rawio.RawIo, sample: Mapping[str, Any], tensors: Mapping[str, Any], tolerance: float, before: float
) -> str:
    """Return the step that the training code takes otherwise, if one alone explains its tensors.

    `before` is how far ours are from them.
    """
    found: list[tuple[float, str]] = []
    for kind, (step, does, changed) in _variants(io):
        try:
            ours = io.with_changed(kind, changed).arrays([sample])
        except (BadInput, ValueError):
            continue
        off = max(_off(ours[name], array) for name, array in tensors.items())
        if off <= tolerance:
            return f"{step}: your code {does}"
        found.append((off, f"{step}: your code {does}, which explains most of it"))
    best = min(found, default=(float("inf"), ""))
    if best[0] < _MOST_OF_IT * before and best[0] < _NEAR:
        return best[1]
    return "no single step explains it: compare what your code does with io.json, step by step"


def _variants(io: rawio.RawIo) -> Iterator[tuple[str, tuple[str, str, dict[str, Any]]]]:
    for kind in rawio.READERS:
        if kind in io.spec and kind != "python":
            module = import_module(f"{rawio.__package__}.{kind}")
            for spec in module.variants(io.spec[kind]):
                yield kind, spec


def _check_answer(name: str, theirs: Any, ours: Any, tolerance: float) -> None:
    """Compare an answer: a label or number with our prediction, of a mapping what both have."""
    expected = theirs if isinstance(theirs, Mapping) else {"prediction": theirs}
    got = ours if isinstance(ours, Mapping) else {"prediction": ours}
    for key, value in expected.items():
        if key not in got:
            raise StageError(
                f"golden answered {key!r} for {name}, the answer has only {', '.join(map(str, got))}"
            )
        if not same(_plain(value), got[key], partial(_close, tolerance)):
            raise GateError(f"{name}: {key} is {got[key]!r}, the training code's {_plain(value)!r}",
                            fix="let golden return its tensors to see which step differs")  # fmt: skip


def _plain(value: Any) -> Any:
    value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
    return value.tolist() if hasattr(value, "tolist") else value


def same(theirs: Any, ours: Any, close: Callable[[float, float], bool]) -> bool:
    """Say whether an answer has all that another has, its floats `close` to the other's."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        return all(key in ours and same(value, ours[key], close) for key, value in theirs.items())
    if isinstance(theirs, list) and isinstance(ours, list):
        pairs = zip(theirs, ours, strict=False)
        return len(theirs) == len(ours) and all(same(a, b, close) for a, b in pairs)
    if isinstance(theirs, float) and isinstance(ours, int | float):
        return close(theirs, ours)
    return bool(theirs == ours)


def _close(tolerance: float, theirs: float, ours: float) -> bool:
    return abs(theirs - ours) <= tolerance * max(1.0, abs(theirs))


def runner(bundle: Bundle, threads: int) -> Run:
    """Return the model itself, as inputs → outputs with the samples along axis 0."""
    import numpy as np

    from . import bundles, protos
    from .flattening import named_arrays

    if bundle.is_onnx:
        run: Run = protos.runner(bundle.folder, threads=threads)
    else:
        import torch

        module = bundle.module()

        def run(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
            with torch.no_grad():
                return named_arrays(module(*bundles.tensors(arrays, bundle.input_names)), bundle.output_names)

    inputs = {port.name: port.batch for port in bundle.inputs}
    outputs = {port.name: port.batch for port in bundle.outputs}

    def first(arrays: Mapping[str, Any]) -> dict[str, Any]:
        placed = {n: np.moveaxis(arrays[n], 0, inputs[n] or 0) for n in bundle.input_names}
        found = run({n: np.ascontiguousarray(placed[n]) for n in bundle.input_names})
        return {n: np.moveaxis(a, outputs[n] or 0, 0) for n, a in found.items()}

    return first
