"""`checkpoint.state_dict`: any checkpoint → weights.safetensors and its metadata."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from typing import Any

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from . import _checkpoint

_CHUNK_BYTES = 1 << 20


class CheckpointStateDict(Stage):
    """Take the weights out of a training checkpoint, without running what is inside it.

    Reads torch.save files (zip and legacy), safetensors and their shards; strips the prefixes of
    DDP and torch.compile. A whole pickled module needs `trust: true`.
    """

    uses = "checkpoint.state_dict"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    extra = "torch"

    class Params(StageParams):
        """What to take."""

        key: str | None = Field(None, description="where the state_dict is; found if left out")
        strip_prefix: str | None = Field(None, description="a prefix to take off every name")
        code: Code | None = Field(None, description="defines the classes of a pickled module")

    class Inputs(StageInputs):
        """The checkpoint."""

        checkpoint: File | Folder = Field(description="the file that the training loop wrote")

    class Outputs(StageOutputs):
        """The weights."""

        weights: File = Output("weights.safetensors", "the weights, tied tensors once")
        metadata: File = Output("metadata.json", "epoch, loss and what else the checkpoint says")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Read, find, strip, write, read back."""
        if params.code is not None:
            _define_in_main(params.code, ctx.load(params.code))
        content = _checkpoint.read(inputs.checkpoint, trust=ctx.trust)
        weights, key = _checkpoint.find_state_dict(content, params.key)
        weights, prefix = _checkpoint.strip_wrappers(weights, params.strip_prefix)
        tied = _checkpoint.write_safetensors(outputs.weights, weights)
        _verify(outputs, weights, tied)
        count = sum(t.numel() for name, t in weights.items() if name not in tied)
        dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in weights.values()})
        metadata = {
            "format": _checkpoint.sniff(inputs.checkpoint),
            "key": key,
            "stripped_prefix": prefix,
            "tensors": len(weights),
            "parameters": count,
            "dtypes": dtypes,
            "tied": tied,
            "training": _training_values(content),
        }
        text = json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False)
        outputs.metadata.write_text(text + "\n", "utf-8")
        ctx.figure("parameters", count)
        ctx.figure("tensors", len(weights))
        for name in ("epoch", "loss", "best_acc"):
            if name in metadata["training"]:
                ctx.figure(name, metadata["training"][name])


def _define_in_main(code: str, value: Any) -> None:
    """Training scripts pickle their classes as `__main__.NAME`."""
    setattr(sys.modules["__main__"], code.rpartition(":")[2], value)


def _verify(
    outputs: CheckpointStateDict.Outputs, weights: Mapping[str, Any], tied: Mapping[str, str]
) -> None:
    """Compare the written file with the tensors, bit for bit, without mapping it as well."""
    import torch

    with outputs.weights.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        for name, tensor in weights.items():
            begin, end = header[tied.get(name, name)]["data_offsets"]
            file.seek(start + begin)
            expected = memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
            for at in range(0, end - begin, _CHUNK_BYTES):
                if file.read(min(_CHUNK_BYTES, end - begin - at)) != expected[at : at + _CHUNK_BYTES]:
                    raise StageError(f"{name!r} was not written as it was read")


def _training_values(content: Any) -> dict[str, Any]:
    """Return the plain values of the checkpoint's top level: epoch, loss, accuracy and so on."""
    import math

    values: dict[str, Any] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        number = value.item() if hasattr(value, "item") and getattr(value, "size", None) == 1 else value
        if isinstance(number, float) and not math.isfinite(number):
            number = str(number)
        if isinstance(number, (str, int, float, bool)):
            values[str(name)] = number
    return values
