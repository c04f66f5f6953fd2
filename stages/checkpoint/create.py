"""`checkpoint.create`: weights and their metadata → a checkpoint that training can resume from."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from ..model import state_dicts, tensor_files
from . import harmless, reader

_STATE = ("scheduler_state_dict", "lr_scheduler_state_dict", "scheduler", "lr_scheduler", "scaler_state_dict",
          "scaler", "rng_state", "model_config")  # fmt: skip
"""What a training loop writes beside weights, optimizer and plain values."""


class CheckpointCreate(Stage):
    """Write a training checkpoint that contains only plain values and tensors.

    `torch.load(path, weights_only=True)` loads it. The date is a parameter, not the time of the
    run, so that equal inputs give equal bytes.
    """

    uses = "checkpoint.create"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    extra = "torch"

    class Params(StageParams):
        """What the checkpoint says about the training."""

        config: dict[str, Any] | None = Field(
            None, description="how to build the model (default: the checkpoint's `model_config`)"
        )
        training_date: str | None = Field(
            None, description="when it was trained, e.g. 2026-11-24 (default: the checkpoint's date)"
        )

    class Inputs(StageInputs):
        """The weights."""

        weights: File = Field(description="weights.safetensors of checkpoint.state_dict")
        metadata: File | None = Field(None, description="metadata.json of checkpoint.state_dict")
        checkpoint: File | None = Field(
            None, description="a checkpoint whose optimizer, scheduler and random states are copied"
        )

    class Outputs(StageOutputs):
        """The checkpoint."""

        checkpoint: File = Output("checkpoint.pt", "model_state_dict, optimizer_state_dict, epoch, loss, …")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Gather, save, load back, compare."""
        import torch

        content: dict[str, Any] = {"model_state_dict": _as_torch(tensor_files.read(inputs.weights))}
        if inputs.checkpoint is not None:
            content |= _training_state(inputs.checkpoint)
        if inputs.metadata is not None:
            content |= json.loads(inputs.metadata.read_text("utf-8"))["training"]
        if params.config is not None or "model_config" not in content:
            content["model_config"] = params.config or {}
        content["pytorch_version"] = str(torch.__version__)
        if params.training_date is not None:
            content["training_date"] = params.training_date
        with outputs.checkpoint.open("wb") as file:  # To a name, the name would be in the bytes.
            torch.save(content, file)
        written = torch.load(outputs.checkpoint, weights_only=True)["model_state_dict"]
        for name, tensor in content["model_state_dict"].items():
            if isinstance(tensor, torch.Tensor) and not torch.equal(written[name], tensor):
                raise StageError(f"{name!r} has different content after writing")
        ctx.figure("keys", sorted(content))  # type: ignore[arg-type]
        ctx.figure("bytes", outputs.checkpoint.stat().st_size)


def _as_torch(weights: state_dicts.StateDict) -> OrderedDict[str, Any]:
    """Return a state_dict as torch's own is: with its versions as `_metadata`."""
    state = OrderedDict(weights)
    if weights.versions:
        state._metadata = OrderedDict(weights.versions)  # type: ignore[attr-defined]
    return state


def _training_state(checkpoint: Path) -> dict[str, Any]:
    """Return what training needs beside the weights, under the names that it has in the checkpoint."""
    content = reader.read(checkpoint, trust=False)
    held = content if isinstance(content, dict) else {}
    for name in ("optimizer_state_dict", "optimizer"):
        if isinstance(held.get(name), dict):
            state = {"optimizer_state_dict": held[name]} | {n: held[n] for n in _STATE if n in held}
            return {name: _plain(value) for name, value in state.items()}
    raise StageError("the checkpoint has no optimizer_state_dict",
                     fix='save {"optimizer_state_dict": optimizer.state_dict(), …}')  # fmt: skip


def _plain(value: Any) -> Any:
    """Return a state with NumPy's scalars as numbers, and its arrays as tensors."""
    import numpy as np
    import torch

    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    if isinstance(value, harmless.Array):
        return torch.from_numpy(value.values.copy())
    return value.item() if isinstance(value, np.generic) else value
