"""What an ONNX file declares of its inputs and outputs, and names for the axes that have none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from ...server.labels import names_samples

if TYPE_CHECKING:
    import onnx

    from .bundles import Port

__all__ = [
    "Input",
    "inputs_of",
    "linkings",
    "named",
    "refuse_foreign_types",
    "sums",
    "tidy",
    "usual",
    "write_axes",
]

_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64",
    **{f"tensor({name})": name for name in (
        "float16", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}  # fmt: skip
"""onnxruntime's words for the types that an .npz can hold → NumPy's."""

_LABEL = re.compile(r"\w[^/{}$]*")
_NUMBERED = re.compile(r"(s|d|u|dim_?|unk_*|axis_?|dynamic_axes_|sym_?|_)?\d+")
_PICTURE = {2: "height", 3: "width"}


@dataclass(frozen=True, slots=True)
class Input:
    """An input; in `dims` a number is a fixed size, a text the label of a dynamic axis, None no label."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]

    @property
    def labels(self) -> dict[int, str]:
        """Return axis → label."""
        return {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}

    def relabelled(self, new: Mapping[str, str | int]) -> Input:
        """Return the input with other labels, or sizes in their place."""
        dims = tuple(new.get(d, d) if isinstance(d, str) else d for d in self.dims)
        return replace(self, dims=dims)


def tidy(model: onnx.ModelProto) -> None:
    """Take out of the graph's inputs and outputs what would mislead.

    Weights, which IR versions below 4 had to list as inputs, and sizes of 0 and less: some converters write
    them for any size.
    """
    weights = _weights(model)
    kept = [value for value in model.graph.input if value.name not in weights]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
    if weights:
        model.ir_version = max(model.ir_version, 4)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.Clear()


def _weights(model: onnx.ModelProto) -> set[str]:
    dense = {tensor.name for tensor in model.graph.initializer}
    return dense | {sparse.values.name for sparse in model.graph.sparse_initializer}


def refuse_foreign_types(opened: Any) -> None:
    """Raise StageError for inputs or outputs of a session that are no tensors of numbers."""
    for what, values in (("input", opened.get_inputs()), ("output", opened.get_outputs())):
        for value in values:
            if value.type in _TYPES:
                continue
            fix = "put the step that makes or takes it outside of the model"
            if what == "output" and "map" in value.type:
                fix = "convert it again with the option `zipmap: False`"
            raise StageError(f"the {what} {value.name!r} is {value.type}, not a tensor of numbers", fix=fix)


def inputs_of(model: onnx.ModelProto, samples: Mapping[str, Any] | None = None) -> list[Input]:
    """Return a file's inputs that are no weights. Raises StageError where there is none, or one has no shape.

    `samples` say the number of axes then. Labels are made fit for the names of cases and members of zips.
    """
    from onnx import helper

    weights = _weights(model)
    found = []
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dims = tuple(_dim(dim) for dim in tensor.shape.dim)
        if not tensor.HasField("shape"):
            given = (samples or {}).get(value.name, (samples or {}).get("x"))
            if given is None:
                raise StageError(f"the input {value.name!r} declares no shape",
                                 fix=f"give `samples`, an .npz with the array {value.name!r}")  # fmt: skip
            dims = (None,) * given.ndim
        found.append(Input(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, dims))
    if not found:
        raise StageError("the model has no input: it computes the same for everybody")
    return found


def _dim(dim: Any) -> int | str | None:
    if dim.dim_value > 0:
        return int(dim.dim_value)
    label = re.sub(r"[/{}$]", "_", dim.dim_param.strip())
    return label[:64] if _LABEL.fullmatch(label) else None


def named(inputs: Sequence[Input]) -> tuple[list[Input], set[str]]:
    """Return the inputs with a label for every axis of any size, and which labels are new.

    Axes 0 are taken for the samples, of what looks like a picture axes for height and width, of whole
    numbers of two axes the second for the length; any other has a label of its own.
    """
    said = {label for given in inputs for label in given.labels.values()}
    samples = next((label for label in sorted(said) if names_samples(label)), "batch")
    new: set[str] = set()
    result = []
    for given in inputs:
        dims = list(given.dims)
        for axis, dim in enumerate(dims):
            if dim is None:
                label = usual(given, axis, samples)
                dims[axis] = f"{_plain(given.name)}_{axis}" if label in said - {samples} else label
        result.append(replace(given, dims=tuple(dims)))
        new |= {label for label in result[-1].labels.values() if label not in said}
    return result, new


def usual(given: Input, axis: int, samples: str) -> str:
    """Return what an axis of any size usually is; `samples` is the label of the samples."""
    rank, floats = len(given.dims), given.dtype.startswith("float") or given.dtype == "uint8"
    if axis == 0:
        return samples
    if rank == 4 and floats:
        last = axis + 1 if given.dims[3] in (1, 3, 4) else axis
        return _PICTURE.get(last, f"{_plain(given.name)}_{axis}")
    return "length" if rank == 2 and not floats else f"{_plain(given.name)}_{axis}"


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name)[:48] or "input"


def sums(inputs: Sequence[Input]) -> dict[str, list[str | int]]:
    """Return label → the labels and numbers that it is the sum of, such as `past_length + 1`.

    A `total` is one too, where there is a `past` and something that is added to it.
    """
    labels = sorted({label for given in inputs for label in given.labels.values()})
    found: dict[str, list[str | int]] = {}
    for label in labels:
        parts = [part.strip() for part in label.split("+")]
        if len(parts) > 1 and all(part in labels or part.isdecimal() for part in parts):
            found[label] = [int(part) if part.isdecimal() else part for part in parts]
        elif label.startswith("total_"):
            rest = label.removeprefix("total_")
            if {rest, f"past_{rest}"} <= {*labels}:
                found[label] = [f"past_{rest}", rest]
    return found


def linkings(inputs: Sequence[Input]) -> Iterator[dict[str, str]]:
    """Yield label → the label whose size it shares: ways to read the file, the likeliest first.

    Exporters give axes of one size labels of their own: of the samples of every input, those of the
    states of a recurrent net, the length of ids and of their mask. What an exporter numbered is taken for
    the samples wherever it stands first, before the file is taken at its word.
    """
    labels = [given.labels for given in inputs]
    first = next((found for found in labels if found), {})
    samples = next((label for found in labels for label in found.values() if names_samples(label)), None)
    samples = samples or first.get(0)
    ways: list[dict[str, str]] = [{}]
    if samples is not None:
        stands = {found[0]: samples for found in labels if 0 in found}
        states = {next(iter(found.values())): samples for found in labels if found and 0 not in found}
        lengths = _lengths(inputs)
        ways += [stands, stands | lengths, stands | states, stands | states | lengths]
        if all(_NUMBERED.fullmatch(label) for label in (*stands, *lengths)):
            ways[:0] = [stands | lengths, stands]
    seen: list[dict[str, str]] = []
    for way in ways:
        told = {label: other for label, other in way.items() if label != other}
        if told not in seen:
            seen.append(told)
            yield told


def _lengths(inputs: Sequence[Input]) -> dict[str, str]:
    """Return the labels of ids and of what goes with them, a mask or positions; a decoder has its own."""
    links: dict[str, str] = {}
    for decodes in (False, True):
        found = [
            given.labels[1]
            for given in inputs
            if 1 in given.labels
            and not given.dtype.startswith("float")
            and given.name.startswith("decoder") == decodes
        ]
        links |= dict.fromkeys(found, found[0]) if found else {}
    return links


def write_axes(model: onnx.ModelProto, ports: Mapping[str, Port], new: Mapping[str, str | int]) -> None:
    """Write the axes of inputs and outputs into a file, and what is `new` for a label wherever it stands.

    An output's axis keeps its label, and gets one where none says that its size varies.
    """
    for value in (*model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in new:
                _set(dim, new[dim.dim_param])
    for value in (*model.graph.input, *model.graph.output):
        port, shape = ports[value.name], value.type.tensor_type.shape
        if len(shape.dim) != len(port.shape):
            del shape.dim[:]
            for _ in port.shape:
                shape.dim.add()
        shape.SetInParent()
    for value in model.graph.input:
        port = ports[value.name]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            _set(dim, port.dynamic.get(axis, port.shape[axis]))
    for value in model.graph.output:
        for axis, label in ports[value.name].dynamic.items():
            dim = value.type.tensor_type.shape.dim[axis]
            if not dim.dim_param:
                _set(dim, label)


def _set(dim: Any, wanted: int | str) -> None:
    if wanted == (dim.dim_value or dim.dim_param):
        return
    dim.Clear()
    if isinstance(wanted, int):
        dim.dim_value = wanted
    else:
        dim.dim_param = wanted
