"""What the ONNX quantizers share: weights that can be found, tensors that int8 can't hold, what was done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy_runner.sdk import Context, Field, StageError, StageParams, first_line

from ..model import protos

if TYPE_CHECKING:
    import numpy as np
    import onnx

PER_CHANNEL_OPSET = 13
_STEPS_POWER = 8
_BITS8 = (2, 3)  # TensorProto.UINT8, INT8
_PAIR = 128
"""Two signed weights of a pair whose magnitudes sum to more overflow 16 bits, times 255, without VNNI."""

_INTEGER = {"MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "QGemm", "DynamicQuantizeLSTM",
            "DynamicQuantizeMatMul", "QAttention", "QLinearAdd", "QEmbedLayerNormalization"}  # fmt: skip
_HEAVY = {"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Gather"}


SATURATION = (
    "signed 8-bit weights overflow on an x86 CPU without VNNI",
    "set `reduce_range: true`, or `weights: uint8`",
)
"""A cause and its fix."""


class Weights(StageParams):
    """How weights are rounded. The defaults are right on every CPU.

    Signed weights of 8 bits times unsigned activations overflow 16 bits on x86 without VNNI: measured, an
    error of 0.113 where unsigned ones give 0.012, and signed ones of 7 bits 0.017.
    """

    weights: Literal["uint8", "int8"] = Field(
        "uint8", description="int8 overflows on x86 without VNNI, unless `reduce_range` is on"
    )
    per_channel: bool | None = Field(
        None, description="one scale for each output channel (default: wherever the opset allows it)"
    )
    reduce_range: bool = Field(False, description="7-bit weights")

    def options(self, *, per_channel: bool) -> dict[str, Any]:
        """Return the arguments of onnxruntime's quantizers."""
        from onnxruntime.quantization import QuantType

        return {
            "weight_type": QuantType.QUInt8 if self.weights == "uint8" else QuantType.QInt8,
            "per_channel": per_channel,
            "reduce_range": self.reduce_range,
        }


def lifted(ctx: Context, path: Path) -> Path:
    """Return a model whose float weights are initializers: quantizers pass over those in Constant nodes."""
    import onnx

    source = protos.onnx_file(path)
    if not any(_is_weight(node) for node in protos.load_proto(path, weights=False).graph.node):
        return source
    model = protos.load_proto(path)
    for node in [node for node in model.graph.node if _is_weight(node)]:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(next(a.t for a in node.attribute if a.name == "value"))
        tensor.name = node.output[0]
        model.graph.node.remove(node)
    model.ir_version = max(model.ir_version, 4)  # Below, initializers have to be inputs too.
    target = ctx.workdir / "lifted" / protos.FILE_NAME
    target.parent.mkdir()
    onnx.save(model, target, save_as_external_data=model.ByteSize() > protos.SINGLE_FILE_BYTES,
              location=protos.DATA_NAME)  # fmt: skip
    return target


def _is_weight(node: onnx.NodeProto) -> bool:
    floats = (1, 10, 11, 16)
    return node.op_type == "Constant" and any(
        a.name == "value" and a.t.data_type in floats and len(a.t.dims) > 0 for a in node.attribute
    )


def preprocessed(ctx: Context, source: Path) -> Path:
    """Fold batch normalisation and constants, and infer shapes, which a legacy export has not done."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = ctx.workdir / "ready.onnx"
    try:
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        model = onnx.load(ready)
    except Exception as error:
        raise StageError(f"the model can't be prepared for quantizing: {first_line(error)}") from error
    nameless = [node for node in model.graph.node if not node.name]
    for index, node in enumerate(nameless):
        node.name = f"{node.op_type}_{index}_unnamed"
    rows = _row_biases(model)
    for bias in rows:
        del bias.dims[0]
    copied = _separated_biases(model)
    if nameless or rows or copied:
        onnx.save(model, ready)
    return ready


def _separated_biases(model: onnx.ModelProto) -> bool:
    """Give each node a bias of its own; say whether some shared one.

    onnxruntime's quantizer does so too, but calls the copies of `b` `b0`, `b1`, which may be other tensors.
    """
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: set[str] = set()
    copied = False
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in known:
            continue
        bias = node.input[2]
        if bias in seen:
            copy = model.graph.initializer.add()
            copy.CopyFrom(known[bias])
            copy.name = node.input[2] = f"{bias} of {node.name}"
            copied = True
        seen.add(bias)
    return copied


def _row_biases(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return what only Gemm adds and is of shape [1, N]: onnxruntime's quantizer needs [N], the same sum."""
    added = {node.input[2] for node in model.graph.node if node.op_type == "Gemm" and len(node.input) == 3}
    others = {
        name for node in model.graph.node for at, name in enumerate(node.input)
        if (node.op_type, at) != ("Gemm", 2)
    } | {value.name for value in (*model.graph.input, *model.graph.output)}  # fmt: skip
    return [
        tensor for tensor in model.graph.initializer
        if tensor.name in added - others and len(tensor.dims) == 2 and tensor.dims[0] == 1
    ]  # fmt: skip


def excluded(before: onnx.ModelProto, ready: onnx.ModelProto, names: list[str]) -> list[str]:
    """Return the nodes of the prepared model that are, or hold, the ones named by the user.

    Preparing fuses nodes: MatMul and Add become `MatMul's name/MatMulAddFusion`. Raises StageError for
    a name that neither model has.
    """
    known = {node.name for node in ready.graph.node}
    protos.refuse_unknown_nodes(before, [name for name in names if name not in known])
    results = {node.name: set(node.output) for node in before.graph.node}
    return [
        node.name
        for node in ready.graph.node
        if any(
            node.name == name or node.name.startswith(f"{name}/") or results.get(name, set()) & {*node.output}
            for name in names
        )
    ]


@dataclass(slots=True)
class Survey:
    """The range of every float tensor on some samples, and those that 256 steps can't hold."""

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    infinite: set[str] = field(default_factory=set)
    powers: dict[str, set[int]] = field(default_factory=dict)
    """The powers of two of a tensor's magnitudes."""

    def reach(self, name: str) -> float:
        """Return a tensor's largest magnitude."""
        low, high = self.ranges.get(name, (0.0, 0.0))
        return max(-low, high)

    @property
    def unfit(self) -> set[str]:
        """Return the tensors that int8 can't hold."""
        return self.infinite | {name for name, powers in self.powers.items() if _is_mask(powers)}

    def nodes(self, model: onnx.ModelProto) -> list[str]:
        """Return the nodes that read or write such a tensor."""
        bad = self.unfit
        return [n.name for n in model.graph.node if n.name and bad & {*n.input, *n.output}]


def _is_mask(powers: set[int]) -> bool:
    """Tell whether a tensor's largest values leave less than one of 256 steps for all others.

    As -1e9 does where attention may not look. Values of all sizes up to the largest, as in an uneven
    channel, are no mask: percentile may find a range for them.
    """
    below = [power for power in powers if power < max(powers) - 1]
    return bool(below) and max(below) < max(powers) - _STEPS_POWER


def survey(ctx: Context, path: Path, samples: Iterable[Mapping[str, Any]]) -> Survey:
    """Run a model and look at all of its float tensors."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    found = Survey()
    model = protos.load_proto(path)
    for tensor in model.graph.initializer:
        if tensor.data_type in (1, 10, 11):
            _look(found, tensor.name, numpy_helper.to_array(tensor))
    present = {o.name for o in model.graph.output}
    inner = [n for node in model.graph.node for n in node.output if n and n not in present]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    watched = ctx.workdir / "watched.onnx"
    onnx.save(model, watched)
    run = protos.runner(watched, threads=ctx.threads)
    for sample in samples:
        for name, array in {**sample, **run(sample)}.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                _look(found, name, array)
    return found


def _look(found: Survey, name: str, array: np.ndarray[Any, Any]) -> None:
    import numpy as np

    if not array.size:  # As the `roi` of a Resize that has none.
        return
    if not np.isfinite(array).all():
        found.infinite.add(name)
        return
    low, high = float(array.min()), float(array.max())
    before = found.ranges.get(name, (low, high))
    found.ranges[name] = (min(low, before[0]), max(high, before[1]))
    _, powers = np.frexp(array[array != 0])
    found.powers.setdefault(name, set()).update(np.unique(powers).tolist())


def report(ctx: Context, before: Path, made: onnx.ModelProto) -> None:
    """Record what is int8 now and what stayed float. Raises StageError where nothing was quantized."""
    initializers = {t.name: t for t in made.graph.initializer}
    restored = {o: n.input[0] for n in made.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    quantized, left = [], []
    for node in made.graph.node:
        if node.op_type == "DequantizeLinear":
            continue
        inputs = [restored.get(name, name) for name in node.input]
        eight = [n for n in inputs if n in initializers and initializers[n].data_type in _BITS8]
        if any(len(initializers[n].dims) > 1 for n in eight):
            quantized.append(node.name or node.op_type)
        elif node.op_type in _HEAVY and any(n in initializers and len(initializers[n].dims) > 1
                                            and initializers[n].data_type == 1 for n in inputs):  # fmt: skip
            left.append(node.name or node.op_type)
    if not quantized:
        raise StageError(
            "nothing was quantized: the model has no constant weight in an operator that is quantized",
            fix="set `operators` to other types; or shorten `exclude`",
        )
    ctx.figure("quantized", len(quantized))
    ctx.figure("left_float", left)
    ctx.figure("needs_vnni", needs_vnni(made))
    if needs_vnni(made):
        ctx.log(
            "signed 8-bit weights overflow on x86 CPUs without VNNI: results are correct only on other CPUs"
        )
    smaller, after = protos.size_bytes(before), made.ByteSize()
    ctx.figure("bytes", after)
    ctx.figure("smaller", round(smaller / after, 3))


def needs_vnni(model: onnx.ModelProto) -> bool:
    """Tell whether signed weights times unsigned activations may overflow 16 bits.

    Without VNNI x86 adds two products of u8 and s8 in 16 bits (vpmaddubsw): 255 * (|a| + |b|) must
    stay below 2^15.
    """
    import numpy as np
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type == 3 and len(tensor.dims) > 1:
            values = np.abs(numpy_helper.to_array(tensor).astype(np.int16))
            if values.max(initial=0) * 2 > _PAIR:
                return True
    return False
