"""`checkpoint.state_dict`: any checkpoint → weights.safetensors and its metadata."""

from __future__ import annotations

import json
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

from ..model import extra_state, state_dicts, tensor_files
from . import adapters, harmless, pickles, reader


class CheckpointStateDict(Stage):
    """Extract the weights from a training checkpoint without executing code in it.

    Reads torch.save files (zip, deflated and legacy), safetensors and .npz, the folders of the Hugging
    Face Trainer, accelerate, torch.distributed.checkpoint and DeepSpeed, and merges LoRA adapters; strips
    the prefixes of DDP, torch.compile, FSDP and averaged models. A whole pickled module, a TorchScript
    program and a .pt2 need `trust: true`.
    """

    uses = "checkpoint.state_dict"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    extra = "torch"

    class Params(StageParams):
        """What to take."""

        key: str | None = Field(None, description="the key of the state_dict (default: the first usual one)")
        strip_prefix: str | None = Field(
            None, description="a prefix to remove from every name; empty: keep all names"
        )
        code: Code | None = Field(None, description="defines the classes of a pickled module")

    class Inputs(StageInputs):
        """The checkpoint."""

        checkpoint: File | Folder = Field(description="the checkpoint's file or folder")
        base: File | Folder | None = Field(
            None, description="for a LoRA adapter (peft): the weights that it was trained on"
        )

    class Outputs(StageOutputs):
        """The weights."""

        weights: File = Output("weights.safetensors", "the weights, tied tensors once")
        metadata: File = Output("metadata.json", "epoch, loss and other values of the checkpoint")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Read, find, strip, write, read back."""
        if params.code is not None:
            pickles.define_in_main(params.code, ctx.load(params.code))
        where = reader.find(inputs.checkpoint)
        adapter = _adapter(where, inputs)
        content = reader.read(inputs.base or inputs.checkpoint, trust=ctx.trust)
        found, key = state_dicts.find_state_dict(content, params.key)
        weights = state_dicts.strip_wrappers(found, params.strip_prefix)
        stripped, dropped = "".join(weights.stripped), len(found) - len(weights)
        if adapter is not None:
            weights = adapters.merge(adapter, reader.read(where.path, trust=False), weights)
        tied = tensor_files.write(outputs.weights, weights)
        tensors = {n: t for n, t in weights.items() if not n.endswith(extra_state.SUFFIX)}
        count = sum(t.numel() for name, t in tensors.items() if name not in tied)
        dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})
        others = [name for name, _ in state_dicts.state_dicts(content) if key and name != key]
        metadata = {
            "format": where.format,
            "file": where.path.name if inputs.checkpoint.is_dir() and where.path.is_file() else None,
            "key": key,
            "averaged": state_dicts.is_ema(key),
            "other_keys": others,
            "stripped_prefix": stripped,
            "dropped": dropped,
            "tensors": len(tensors),
            "parameters": count,
            "dtypes": dtypes,
            "tied": tied,
            "training": _training_values(content),
        }
        text = json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False)
        outputs.metadata.write_text(text + "\n", "utf-8")
        ctx.figure("format", where.format)
        ctx.figure("parameters", count)
        ctx.figure("tensors", len(tensors))
        _say_which(ctx, key, others, params.key)
        if stripped:
            ctx.figure("stripped_prefix", stripped)
        if params.strip_prefix:
            ctx.figure("dropped", sorted(set(found) - {params.strip_prefix + name for name in weights}))  # type: ignore[arg-type]
        for name in ("epoch", "loss", "best_acc"):
            if name in metadata["training"]:
                ctx.figure(name, metadata["training"][name])


def _adapter(where: reader.Found, inputs: Any) -> dict[str, Any] | None:
    """Return a LoRA adapter's settings, or None. Raises StageError where adapter or base is alone."""
    if where.format == "adapter":
        settings = adapters.config(where.path)
        if inputs.base is None:
            raise StageError("the folder is a LoRA adapter (peft): it has only what its base model lacks",
                             fix="name the base's weights: `inputs: {checkpoint: …, base: …}`")  # fmt: skip
        return settings
    if inputs.base is not None:
        raise StageError(
            "the input `base` is for a LoRA adapter, which the checkpoint is not", fix="remove `base`"
        )
    return None


def _say_which(ctx: Context, key: str, others: list[str], chosen: str | None) -> None:
    """Say which weights were taken, and whether they are averaged (EMA, SWA)."""
    if not key:
        return
    ctx.figure("key", key)
    ctx.figure("averaged", state_dicts.is_ema(key))
    if others:
        ctx.figure("other_keys", others)  # type: ignore[arg-type]
        kind = "averaged" if state_dicts.is_ema(key) else "not averaged"
        said = f"took {key!r} ({kind}); the checkpoint also has {', '.join(others)}"
        ctx.log(said if chosen else f"{said}: select one with `key`")


def _training_values(content: Any) -> dict[str, Any]:
    """Return the plain values of the checkpoint's top level: epoch, loss, accuracy, dates and so on."""
    values = {str(k): _plain(v) for k, v in content.items()} if isinstance(content, Mapping) else {}
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> str | int | float | bool | None:
    """Return a value as JSON has it: of tensors and arrays single ones, dates as ISO 8601."""
    import datetime
    import math
    import pathlib

    import numpy as np
    import torch

    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, pathlib.PurePath):
        return value.as_posix()
    value = value.values if isinstance(value, harmless.Array) else value
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        size = value.numel() if isinstance(value, torch.Tensor) else value.size
        value = value.item() if size == 1 else None
    number = value
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    return number if isinstance(number, (str, int, float, bool)) else None
