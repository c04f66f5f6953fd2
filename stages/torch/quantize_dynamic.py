"""`torch.quantize_dynamic`: int8 weights in torch, activations quantized while it runs."""

from __future__ import annotations

from typing import Literal

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
)

from ..model import bundles, judging
from . import quantizing

Engine = Literal["fbgemm", "x86", "onednn", "qnnpack"]


class TorchQuantizeDynamic(Stage):
    """Quantize linear and recurrent layers to int8 without calibration, as TorchScript.

    The file stores the weights as int8 and runs wherever torch runs. Convolutions stay in float.
    """

    uses = "torch.quantize_dynamic"
    packages = ("torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(judging.Floors):
        """What to quantize, and how close it must be."""

        layers: list[Literal["Linear", "LSTM", "GRU"]] = Field(
            default=["Linear", "LSTM", "GRU"], description="the kinds of layers"
        )
        engine: Engine = Field("fbgemm", description="torch's quantized kernels; qnnpack is for ARM")

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The int8 program."""

        model: File = Output("model.pt", "TorchScript, loaded back and compared")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Quantize, trace, save, load back, judge."""
        import torch
        from torch import nn

        bundle = bundles.load_bundle(inputs.model)
        bundle.need_python("onnx.quantize_dynamic")
        module = bundle.module()
        kinds = {getattr(nn, name) for name in params.layers}
        chosen = [name for name, part in module.named_modules() if type(part) in kinds]
        if not chosen:
            raise StageError(f"nothing was quantized: the model has no layer of {', '.join(params.layers)}",
                             fix="use torch.quantize_static or onnx.quantize_static")  # fmt: skip
        torch.backends.quantized.engine = params.engine
        with quantizing.quiet():
            quantized = torch.ao.quantization.quantize_dynamic(module, kinds, dtype=torch.qint8)
        ctx.figure("layers", len(chosen))
        ctx.figure("needs_vnni", quantizing.needs_vnni(params.engine))
        quantizing.deliver(ctx, bundle, quantized, outputs.model, params, [])
