"""Calibration samples from arrays, pictures or a function, streamed, and the ranges found with them.

Samples are never held all at once, nor are the ranges computed in one go: the histogram methods
otherwise keep every intermediate tensor (about 7 MB a sample of a small CNN).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import Code, Context, Field, StageError, StageParams, closest, first_line

from .axes import axis_of, batch_label, rows, without
from .bundles import Bundle, load_bundle
from .histograms import Histograms
from .npz import array_header, open_arrays
from .wording import user_line

if TYPE_CHECKING:
    import numpy as np
    import onnx

Method = Literal["minmax", "entropy", "percentile"]

_CHUNK = 10
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}


class Pictures(StageParams):
    """How a picture becomes an array: resized to the input, divided by 255, normalised."""

    mean: list[float] = Field(
        default=[0.0], description="subtracted from each value: one number for each channel or one for all"
    )
    std: list[float] = Field(
        default=[1.0], description="each value is divided by it after the mean was subtracted"
    )


class Source(StageParams):
    """Where calibration samples come from: the parameters of every stage that calibrates."""

    samples: int | None = Field(None, ge=1, description="the largest number of samples to use")
    pictures: Pictures = Field(default=Pictures(), description="for a folder of pictures: their values")
    function: Code | None = Field(
        None, description="function(path of the input `calibration`, or None) that yields samples"
    )


@dataclass(frozen=True, slots=True)
class Slot:
    """What a model takes for one input; an axis of any size is None.

    `batch` is the axis of the samples, None for an input that all of them share, such as a mask.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    batch: int | None = 0

    @property
    def sample(self) -> tuple[int | None, ...]:
        """Return the shape of one sample, without its batch axis."""
        return self.shape if self.batch is None else without(self.shape, self.batch)

    @property
    def at_once(self) -> int:
        """Return how many samples a run takes: one, or what the model fixes."""
        return 1 if self.batch is None else self.shape[self.batch] or 1


def slots_of_bundle(bundle: Bundle) -> list[Slot]:
    """Return the inputs of a bundle's model."""
    slots = []
    for port in bundle.inputs:
        shape = tuple(None if i in port.dynamic else n for i, n in enumerate(port.shape))
        slots.append(Slot(port.name, port.dtype, shape, port.batch))
    return slots if bundle.batch_sized or None in slots[0].shape[:1] else _on_axis_0(slots)


def slots_of_onnx(model: onnx.ModelProto, bundle: Bundle | None = None) -> list[Slot]:
    """Return the inputs of an ONNX model that aren't weights; a bundle knows better what samples are."""
    from onnx import helper

    values = _inputs(model)
    batch, _ = batch_label([_labels(value) for value in values])
    slots = []
    for value in values:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)  # Paddle writes -1.
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        slots.append(Slot(value.name, dtype, shape, axis_of(_labels(value), batch) if batch else None))
    known = {slot.name: slot.batch for slot in slots_of_bundle(bundle)} if bundle else {}
    if known and all(slot.name in known for slot in slots):
        return [replace(slot, batch=known[slot.name]) for slot in slots]
    return slots if batch else _on_axis_0(slots)


def samples_of_output(model: onnx.ModelProto) -> int:
    """Return the axis of the samples in the first output: the one of that label, else the first."""
    batch, _ = batch_label([_labels(value) for value in _inputs(model)])
    return axis_of(_labels(model.graph.output[0]), batch) or 0


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _labels(value: onnx.ValueInfoProto) -> dict[int, str]:
    return {i: d.dim_param for i, d in enumerate(value.type.tensor_type.shape.dim) if d.dim_param}


def _on_axis_0(slots: Sequence[Slot]) -> list[Slot]:
    """Return the slots where nothing names the samples: they are on the first axes as long as the first's."""
    sizes = [slot.shape[:1] for slot in slots]
    return [
        replace(slot, batch=0 if size and size == sizes[0] else None)
        for slot, size in zip(slots, sizes, strict=True)
    ]


class Samples:
    """Samples by input name, each a batch of one (or as many as the model fixes), read for every pass."""

    def __init__(
        self, open_: Callable[[], Iterator[Mapping[str, Any]]], slots: list[Slot], limit: int | None
    ) -> None:
        self._open = open_
        self._slots = slots
        self._limit = limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count = 0
        for sample in itertools.islice(self._open(), self._limit):
            count += 1
            yield {slot.name: _fit(slot, sample[slot.name]) for slot in self._slots}
        if not count:
            raise StageError("the calibration data is empty", fix="use a hundred samples or more")


def open_samples(ctx: Context, source: Source, calibration: Path | None, slots: list[Slot]) -> Samples:
    """Return the samples of an .npz, a folder of pictures, or the user's function.

    In an .npz an array is found by its input's name, or `x` for a model with one input; a bundle gives
    its reference cases. Raises StageError for what doesn't fit, at the latest where the samples are read.
    """
    if source.function is not None:
        function = ctx.load(source.function)
        return Samples(lambda: _from_function(function, calibration, slots), slots, source.samples)
    if calibration is None:
        raise StageError("there is no calibration data",
                         fix="set the input `calibration` or the parameter `function`")  # fmt: skip
    if (calibration / "bundle.json").is_file():
        bundle = load_bundle(calibration)
        return Samples(lambda: _from_cases(bundle, slots), slots, source.samples)
    if calibration.is_dir():
        return Samples(lambda: _from_pictures(calibration, source.pictures, slots), slots, source.samples)
    return Samples(lambda: _from_arrays(calibration, slots), slots, source.samples)


def _fit(slot: Slot, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a sample in the model's type; refuse another kind of number, and inf and nan."""
    import numpy as np

    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise StageError(f"the calibration data {slot.name!r} has values that are not finite",
                         fix="remove these samples, or correct how they are prepared")  # fmt: skip
    if array.dtype.kind != np.dtype(slot.dtype).kind:
        raise StageError(f"the calibration data {slot.name!r} is {array.dtype}, the model takes {slot.dtype}",
                         fix="prepare the samples as the model takes them, and save them again")  # fmt: skip
    return np.ascontiguousarray(array, dtype=slot.dtype)


def _check_shape(slot: Slot, shape: tuple[int, ...]) -> None:
    """Compare the shape of one sample, without its batch axis, with the model's."""
    fits = len(shape) == len(slot.sample) and all(
        want in (None, got) for want, got in zip(slot.sample, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in slot.sample)
        raise StageError(f"a sample of {slot.name!r} has the shape {shape}, the model takes ({wanted})")


def _from_arrays(path: Path, slots: list[Slot]) -> Iterator[dict[str, Any]]:
    """Read one sample after the other out of an .npz, whose arrays may be larger than memory."""
    with open_arrays(path) as members:
        readers = []
        for slot in slots:
            name = slot.name if slot.name in members else "x" if len(slots) == 1 and "x" in members else ""
            if not name:
                raise StageError(
                    f"the calibration data has no array {slot.name!r}, it has {', '.join(members) or 'none'}",
                    fix=closest(slot.name, members) or "name each array after its input",
                )
            readers.append(_rows(members[name], slot, members.sizes[name]))
        single = all(slot.batch is None for slot in slots)
        for found in itertools.islice(zip(*readers, strict=False), 1 if single else None):
            yield {slot.name: row for slot, row in zip(slots, found, strict=True)}


def _rows(file: IO[bytes], slot: Slot, file_bytes: int) -> Iterator[Any]:
    """Yield an array's samples, each as a batch of one; one that all samples share again and again.

    Only what has its samples on the first axis can be larger than memory.
    """
    import numpy as np

    shape, fortran, dtype = array_header(slot.name, file, file_bytes)
    if (slot.batch is not None and not shape) or (fortran and len(shape) > 1):
        raise ValueError(f"the array {slot.name!r} is a single value or in Fortran order")
    _check_shape(slot, shape if slot.batch is None else without(shape, slot.batch))
    if slot.batch != 0:
        array = np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
        yield from itertools.repeat(array) if slot.batch is None else _cut(slot, array)
        return
    step = slot.at_once
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0] // step):
        yield np.frombuffer(file.read(step * row_bytes), dtype).reshape(step, *shape[1:])


def _from_cases(bundle: Bundle, slots: list[Slot]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a bundle's reference cases."""
    for case in bundle.cases:
        missing = [slot.name for slot in slots if slot.name not in case.inputs]
        if missing:
            raise StageError(
                f"the bundle's cases have no input {missing[0]!r}, only {', '.join(case.inputs)}"
            )
        yield from _each(case.inputs, slots)


def _from_pictures(folder: Path, pictures: Pictures, slots: list[Slot]) -> Iterator[dict[str, Any]]:
    """Read the pictures of a folder, in the order of their names."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if len(slots) != 1 or slots[0].batch != 0 or len(slots[0].shape) != 4 or None in slots[0].sample:
        raise StageError("a folder of pictures requires a model with one input of shape [batch, channels, "
                         "height, width]", fix="use an .npz or a `function`")  # fmt: skip
    name, (_, channels, height, width) = slots[0].name, slots[0].shape
    if channels not in (1, 3):
        raise StageError(f"pictures have 1 or 3 channels, the model takes {channels}")
    assert height is not None
    assert width is not None
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (pictures.mean, pictures.std))
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or not std.all():
        raise StageError(f"pictures: mean and std must have 1 or {channels} values, and std must not be 0")
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES):
        try:
            with Image.open(path, formats=sorted(set(_PICTURES.values()))) as image:
                resized = image.convert("L" if channels == 1 else "RGB").resize((width, height))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            said = first_line(error).replace(str(path), path.name)
            raise StageError(f"{path.relative_to(folder)} is not a picture: {said}") from None
        pixels = np.asarray(resized, np.float32).reshape(height, width, channels).transpose(2, 0, 1) / 255
        yield {name: ((pixels - mean) / std)[None]}


def _from_function(
    function: Callable[[Path | None], Iterable[Any]], calibration: Path | None, slots: list[Slot]
) -> Iterator[dict[str, Any]]:
    """Take what the user's function yields: arrays or mappings, of single samples or batches."""
    import numpy as np

    try:
        for given in function(calibration):
            named = given if isinstance(given, Mapping) else {slots[0].name: given}
            missing = [slot.name for slot in slots if slot.name not in named]
            if missing:
                raise StageError(
                    f"the calibration function yields no {missing[0]!r}, only {', '.join(named)}"
                )
            batch = {slot.name: np.asarray(named[slot.name]) for slot in slots}
            if all(batch[slot.name].ndim == len(slot.sample) for slot in slots):
                batch = {s.name: batch[s.name] if s.batch is None else np.expand_dims(batch[s.name], s.batch)
                         for s in slots}  # fmt: skip
            yield from _each(batch, slots)
    except StageError:
        raise
    except Exception as error:
        raise StageError(f"the calibration function fails: {first_line(error)}{user_line(error)}") from error


def _each(batch: Mapping[str, Any], slots: list[Slot]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a batch."""
    counts = []
    for slot in slots:
        shape = batch[slot.name].shape
        _check_shape(slot, shape if slot.batch is None else without(shape, slot.batch))
        counts += [] if slot.batch is None else [shape[slot.batch]]
    step = max((slot.at_once for slot in slots), default=1)
    for i in range(0, min(counts, default=step) - step + 1, step):
        yield {slot.name: rows(batch[slot.name], slot.batch, slice(i, i + step)) for slot in slots}


def _cut(slot: Slot, array: np.ndarray[Any, Any]) -> Iterator[Any]:
    assert slot.batch is not None
    step = slot.at_once
    for i in range(0, array.shape[slot.batch] - step + 1, step):
        yield rows(array, slot.batch, slice(i, i + step))


class _Reader:
    """Hands out one chunk of samples, one batch of one at a time."""

    def __init__(self, samples: Iterable[dict[str, Any]]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._samples, None)


def compute_ranges(
    model: Path, samples: Samples, cache: Path, *, method: Method, bins: int, percentile: float,
    unfit: Set[str] = frozenset(),
) -> int:  # fmt: skip
    """Write the ranges of every tensor to `cache`, in onnxruntime's own JSON form; return the samples' count.

    `unfit` tensors are left out: infinite values have no range, a mask's fill is one value.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import (
        TensorData,
        TensorsData,
        create_calibrator,
        save_tensors_data,
    )

    kind = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile}[method]  # fmt: skip
    histograms = Histograms(bins)
    try:
        augmented = str(cache.with_name("augmented.onnx"))
        calibrator = create_calibrator(model, augmented_model_path=augmented, calibrate_method=kind)
        if method != "minmax":
            calibrator.collector = histograms
            calibrator.tensors_to_calibrate -= unfit
        remaining = iter(samples)
        count = 0
        while chunk := list(itertools.islice(remaining, _CHUNK if method == "minmax" else 1)):
            count += len(chunk)
            calibrator.collect_data(_Reader(chunk))
        if method == "minmax":
            ranges = calibrator.compute_data()
            for name in unfit & set(ranges.keys()):
                del ranges.data[name]
        else:
            found = {name: h.range(method, percentile) for name, h in histograms.tensors.items()}
            data = {name: TensorData(lowest=low, highest=high) for name, (low, high) in found.items()}
            ranges = TensorsData(kind, data)
    except StageError:
        raise
    except Exception as error:
        raise StageError(f"the calibration fails: {first_line(error)}",
                         fix="check that the samples have the model's shape and type") from error  # fmt: skip
    save_tensors_data(ranges, cache)
    return count
