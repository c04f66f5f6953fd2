"""`torch.quantize_static`: int8 weights and activations in torch, calibrated on samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    closest,
    first_line,
)

from ..model import bundles, calibration, fresh_inputs, judging
from . import quantizing
from .quantize_dynamic import Engine

if TYPE_CHECKING:
    from torch import nn

_FUSIBLE = (
    ("Conv1d", "BatchNorm1d", "ReLU"), ("Conv2d", "BatchNorm2d", "ReLU"), ("Conv3d", "BatchNorm3d", "ReLU"),
    ("Conv1d", "BatchNorm1d"), ("Conv2d", "BatchNorm2d"), ("Conv3d", "BatchNorm3d"),
    ("Conv1d", "ReLU"), ("Conv2d", "ReLU"), ("Conv3d", "ReLU"),
    ("Linear", "BatchNorm1d"), ("Linear", "ReLU"), ("BatchNorm2d", "ReLU"), ("BatchNorm3d", "ReLU"),
)  # fmt: skip
"""What torch.ao.quantization.fuse_modules fuses in eval mode."""

_FLOAT = ("Embedding", "EmbeddingBag", "RNN", "LSTM", "GRU", "MultiheadAttention", "TransformerEncoder",
          "TransformerEncoderLayer", "TransformerDecoder", "TransformerDecoderLayer")  # fmt: skip
"""Layers of torch.nn whose static int8 form doesn't exist, or keeps one length only."""


class TorchQuantizeStatic(Stage):
    """Fuse, calibrate and convert the model to int8 with torch's eager mode, as TorchScript.

    Layers that follow each other (convolution, batch normalisation, ReLU) are found and fused.
    Inputs are quantized and outputs dequantized around the model, unless it has its own stubs.
    Embeddings, recurrent and attention layers stay in float.
    """

    uses = "torch.quantize_static"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(calibration.Source, judging.Floors):
        """How to quantize, and how close it must be."""

        engine: Engine = Field("fbgemm", description="torch's quantized kernels; qnnpack is for ARM")
        fuse: list[list[str]] | None = Field(
            None, description="lists of modules to fuse, by name (default: consecutive modules)"
        )
        exclude: list[str] = Field(default=[], description="names of modules to keep in float")

    class Inputs(StageInputs):
        """The model and the samples."""

        model: Folder = Field(description="the bundle of model.prepare")
        calibration: File | Folder | None = Field(
            None,
            description="samples in an .npz, by input name or `x`, in a folder of pictures or a bundle",
        )

    class Outputs(StageOutputs):
        """The int8 program."""

        model: File = Output("model.pt", "TorchScript, loaded back and compared")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Fuse, prepare, calibrate, convert, trace, save, load back, judge."""
        import torch
        from torch.ao import quantization

        bundle = bundles.load_bundle(inputs.model)
        bundle.need_python("onnx.quantize_static")
        slots = calibration.slots_of_bundle(bundle)
        samples = calibration.open_samples(ctx, params, inputs.calibration, slots)
        torch.backends.quantized.engine = params.engine
        module = bundle.module()
        known = dict(module.named_modules())
        for name in (*params.exclude, *(n for group in params.fuse or [] for n in group)):
            if name not in known:
                raise StageError(f"the model has no module {name!r}",
                                 fix=closest(name, known))  # fmt: skip
        with quantizing.quiet():
            groups = _sequences(module, params.exclude) if params.fuse is None else params.fuse
            module = _fused(module, groups)
            own_stubs = any(isinstance(part, quantization.QuantStub) for part in known.values())
            kept = _outermost([*params.exclude, *(n for n, m in known.items() if _is_float(m))])
            for name in kept:
                _keep_float(module, name)
            ready = module if own_stubs else _with_stubs(module)
            ready.qconfig = quantization.get_default_qconfig(params.engine)
            quantization.prepare(ready, inplace=True)
            count = 0
            for sample in samples:
                ready(*bundles.tensors(sample, bundle.input_names))
                count += 1
            quantized = quantization.convert(ready, inplace=True)
        ctx.figure("calibration_samples", count)
        ctx.figure("fused", len(groups))
        ctx.figure("float_layers", kept)  # type: ignore[arg-type]
        if not any(_has_int8_weight(part) for part in quantized.modules()):
            raise StageError("nothing was quantized: no layer of the model has a static int8 form",
                             fix="use torch.quantize_dynamic or onnx.quantize_static")  # fmt: skip
        ctx.figure("needs_vnni", quantizing.needs_vnni(params.engine))
        kept_samples = fresh_inputs.kept(samples)
        quantizing.deliver(ctx, bundle, quantized, outputs.model, params, kept_samples)


def _has_int8_weight(module: nn.Module) -> bool:
    kind = type(module).__module__
    return (
        kind.startswith("torch.ao.nn.") and ".quantized" in kind and callable(getattr(module, "weight", None))
    )


def _is_float(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ in _FLOAT and kind.__module__.startswith("torch.nn.")


def _outermost(names: list[str]) -> list[str]:
    return sorted({n for n in names if not any(n.startswith(f"{other}.") for other in names)})


def _sequences(module: nn.Module, excluded: list[str]) -> list[list[str]]:
    """Return the runs of fusible modules, each used once and by the next alone."""
    from torch import fx

    try:
        nodes = list(fx.symbolic_trace(module).graph.nodes)
    except Exception:
        return []  # What can't be traced symbolically is quantized without fusing.
    calls = [n for n in nodes if n.op == "call_module" and n.target not in excluded]
    follower: dict[Any, Any] = {
        a: b for a in calls for b in a.users if len(a.users) == 1 and b in calls and b.args == (a,)
    }
    modules = dict(module.named_modules())
    uses = [n.target for n in calls]
    groups: list[list[str]] = []
    taken: set[Any] = set()
    for start in calls:
        chain = [start]
        while len(chain) < 3 and chain[-1] in follower:
            chain.append(follower[chain[-1]])
        for kinds in _FUSIBLE:
            run = chain[: len(kinds)]
            found = tuple(type(modules[n.target]).__name__ for n in run)
            if found == kinds and not taken & set(run) and all(uses.count(n.target) == 1 for n in run):
                groups.append([n.target for n in run])
                taken |= set(run)
    return groups


def _fused(module: nn.Module, groups: list[list[str]]) -> nn.Module:
    from torch.ao.quantization import fuse_modules

    try:
        return fuse_modules(module, groups) if groups else module
    except (NotImplementedError, AssertionError, AttributeError) as error:
        raise StageError(f"the modules can't be fused: {first_line(error)}",
                         fix="fix `fuse`; `fuse: []` fuses none") from error  # fmt: skip


def _with_stubs(module: nn.Module) -> nn.Module:
    """Quantize the float inputs of a model, and dequantize all of its outputs."""
    import torch
    from torch import nn
    from torch.ao.quantization import DeQuantStub, QuantStub
    from torch.utils import _pytree

    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant = QuantStub()
            self.module = module
            self.dequant = DeQuantStub()

        def forward(self, *inputs: torch.Tensor) -> Any:
            quantized = [self.quant(t) if t.is_floating_point() else t for t in inputs]
            return _pytree.tree_map(self.dequant, self.module(*quantized))

    return Stubbed().eval()


def _keep_float(module: nn.Module, name: str) -> None:
    """Dequantize before a module and quantize after it."""
    from torch import nn
    from torch.ao.quantization import QuantStub
    from torch.utils import _pytree

    class Float(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.quant = QuantStub()
            inner.qconfig = None  # type: ignore[assignment]

        def forward(self, *inputs: Any, **options: Any) -> Any:
            plain = (_pytree.tree_map(lambda t: t.dequantize() if t.is_quantized else t, i) for i in inputs)
            return _pytree.tree_map(self.quant, self.inner(*plain, **options))

    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, Float(module.get_submodule(name)).eval())
