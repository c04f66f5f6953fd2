"""Find sizes for a file's dynamic axes: ones that its own operators accept.

With sizes set, onnx's shape inference refuses most wrong ones in a millisecond and without weights, so
many are tried; a few of those that are left are run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from ...server.labels import names_samples
from .axes import Axis
from .compare import Model
from .protos import tensors_of

if TYPE_CHECKING:
    import onnx

    from .declared import Input

__all__ = ["MOST_VALUES", "Options", "first_sizes", "options_of", "skeleton"]

# Never 1 or 2, the number of the samples: what is added to them would do for another axis of theirs.
_SAMPLES = (3, 4, 6, 8)
_PICTURES = (224, 256, 32, 64, 128, 512, 384, 299, 320, 640, 416, 96, 48, 28, 331, 1024, 16, 8, 14, 20, 7, 4)
_IDS = (16, 8, 32, 12, 64, 128, 77, 256, 512, 4)
_SOUND = (16000, 8000, 48000, 4000, 1600, 400, 160000, 480000, 512, 1024, 256, 64, 32, 16, 8)
_OTHERS = (32, 16, 64, 100, 128, 8, 256, 80, 224, 400, 512, 1024, 3000, 4000, 16000, 48000, 160000, 4, 3)
_LONG_STEP = 32
_MOST_SIZES = 400
_MOST_RUNS = 16
MOST_VALUES = 1 << 27
"""No tensor of a probe is larger: half a gigabyte of float32."""
_TABLE_VALUES = 256
"""Smaller tensors may be shapes, which inference reads."""

Sizes = dict[str, int]
Options = Mapping[str, Sequence[int]]
"""Label → sizes to try, the likeliest first."""


def options_of(
    model: onnx.ModelProto, inputs: Sequence[Input], axes: Mapping[str, Axis], examples: Mapping[str, int]
) -> Options:
    """Return the sizes to try for each label: the user's example, else by what the input looks like."""
    found: dict[str, Sequence[int]] = {}
    sound = _hears(model)
    for given in inputs:
        for axis, label in given.labels.items():
            found.setdefault(label, _SOUND if sound and _is_wave(given, axis) else _usual(given, axis))
    for label, allowed in axes.items():
        usual = [n for n in found[label] if allowed.allows(n)]
        ends = [allowed.nearest(n) for n in (allowed.min, allowed.max) if n is not None and n > 1]
        found[label] = [examples[label]] if label in examples else list(dict.fromkeys([*usual, *ends]))
    return {label: found[label] for label in axes}


def _usual(given: Input, axis: int) -> Sequence[int]:
    if names_samples(str(given.dims[axis])):
        return _SAMPLES
    floats = given.dtype.startswith("float") or given.dtype == "uint8"
    if not floats or "past" in str(given.dims[axis]):
        return _IDS
    return _PICTURES if len(given.dims) == 4 else _OTHERS


def _is_wave(given: Input, axis: int) -> bool:
    """Say whether an axis may be that of a raw sound: the last of [N, T] or [N, 1, T]."""
    dims = given.dims
    return given.dtype.startswith("float") and axis == len(dims) - 1 and (
        len(dims) == 2 or (len(dims) == 3 and dims[1] in (1, 2))
    )  # fmt: skip


def _hears(model: onnx.ModelProto) -> bool:
    """Say whether a model takes raw sound: it makes long steps over one axis, or a spectrum."""
    step = 1
    for node in model.graph.node:
        strides = next((list(a.ints) for a in node.attribute if a.name == "strides"), [])
        step *= strides[0] if len(strides) == 1 else 1
        if node.op_type in ("STFT", "DFT"):
            return True
    return step >= _LONG_STEP


@dataclass(frozen=True, slots=True)
class Probe:
    """What tells whether a model takes some sizes: inference, then a run on `arrays` of them."""

    accepts: Callable[[Sizes], bool]
    arrays: Callable[[Sizes], Mapping[str, Any]]
    run: Model

    def result(self, sizes: Sizes) -> int:
        """Return how many values come out. Raises StageError where the model refuses."""
        return sum(array.size for array in self.run(self.arrays(sizes)).values())


def first_sizes(options: Options, fixed: Sizes, probe: Probe) -> Sizes:
    """Return sizes of all labels at which the model runs and has an output; `fixed` is not varied.

    Raises the StageError of the first that were run where none is taken.
    """
    tried = list(itertools.islice(_combinations(options), _MOST_SIZES))
    likely = (sizes for sizes in tried if probe.accepts({**fixed, **sizes}))
    refusal: StageError | None = None
    empty: Sizes | None = None
    for sizes in itertools.islice(itertools.chain(likely, tried), _MOST_RUNS):
        try:
            if probe.result({**fixed, **sizes}):
                return {**fixed, **sizes}
        except StageError as error:
            refusal = refusal or error
            continue
        empty = empty or {**fixed, **sizes}
    if empty is None:
        assert refusal is not None
        raise refusal
    return empty


def _combinations(options: Options) -> Iterator[Sizes]:
    """Yield sizes for all labels: first the likeliest of each, of one rank, then all pairs and so on."""
    ranks = max((len(sizes) for sizes in options.values()), default=1)
    for rank in range(ranks):
        yield {label: sizes[min(rank, len(sizes) - 1)] for label, sizes in options.items()}
    if len(options) > 1:
        few = [sizes[:12] for sizes in options.values()]
        for chosen in itertools.product(*few):
            yield dict(zip(options, chosen, strict=True))


def skeleton(model: onnx.ModelProto, inputs: Sequence[Input]) -> Callable[[Sizes], bool]:
    """Return whether inference accepts sizes; it accepts all where it has no answer for this file."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in tensors_of(bare):
        if math.prod(tensor.dims) > _TABLE_VALUES:
            _emptied(tensor)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    declared = {value.name: value.type.tensor_type.shape for value in bare.graph.input}

    def accepts(sizes: Sizes) -> bool:
        for given in inputs:
            shape = declared[given.name]
            del shape.dim[:]
            for dim in given.dims:
                size = sizes.get(dim) if isinstance(dim, str) else dim
                shape.dim.add(**({"dim_param": str(dim)} if size is None else {"dim_value": size}))
        try:
            made = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
        except Exception:  # Its errors share no class of their own.
            return False
        return all(_values(value) <= MOST_VALUES for value in made.graph.value_info)

    return accepts if accepts({}) else lambda sizes: True


def _emptied(tensor: onnx.TensorProto) -> None:
    """Leave a tensor's shape and type."""
    import onnx

    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value="left_out")


def _values(value: onnx.ValueInfoProto) -> int:
    return math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
