"""`checkpoint.create`: weights and their metadata → a checkpoint that training can resume from."""

from __future__ import annotations

import json
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

from . import _bundle, _checkpoint


class CheckpointCreate(Stage):
    """Write a training checkpoint that holds plain values and tensors only.

    It loads by `torch.load(path, weights_only=True)`. The date is the one that is given, never
    the clock of the run, so that equal inputs give equal bytes.
    """

    uses = "checkpoint.create"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    extra = "torch"

    class Params(StageParams):
        """What the checkpoint says about the training."""

        config: dict[str, Any] = Field(default={}, description="how to build the model")
        training_date: str | None = Field(None, description="when it was trained, e.g. 2026-11-24")

    class Inputs(StageInputs):
        """The weights."""

        weights: File = Field(description="weights.safetensors of checkpoint.state_dict")
        metadata: File | None = Field(None, description="metadata.json of checkpoint.state_dict")
        checkpoint: File | None = Field(None, description="a checkpoint to take the optimizer's state from")

    class Outputs(StageOutputs):
        """The checkpoint."""

        checkpoint: File = Output("checkpoint.pt", "model_state_dict, optimizer_state_dict, epoch, loss, …")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Gather, save, load back, compare."""
        import torch

        content: dict[str, Any] = {"model_state_dict": _bundle.read_weights(inputs.weights)}
        if inputs.checkpoint is not None:
            content["optimizer_state_dict"] = _optimizer_state(inputs)
        if inputs.metadata is not None:
            content |= json.loads(inputs.metadata.read_text("utf-8"))["training"]
        content["model_config"] = params.config
        content["pytorch_version"] = str(torch.__version__)
        if params.training_date is not None:
            content["training_date"] = params.training_date
        with outputs.checkpoint.open("wb") as file:  # To a name, the name would be in the bytes.
            torch.save(content, file)
        written = torch.load(outputs.checkpoint, weights_only=True)
        for name, tensor in content["model_state_dict"].items():
            if not torch.equal(written["model_state_dict"][name], tensor):
                raise StageError(f"{name!r} was not written as it was read")
        ctx.figure("keys", sorted(content))  # type: ignore[arg-type]
        ctx.figure("bytes", outputs.checkpoint.stat().st_size)


def _optimizer_state(inputs: CheckpointCreate.Inputs) -> Any:
    assert inputs.checkpoint is not None
    content = _checkpoint.read(inputs.checkpoint, trust=False)
    for name in ("optimizer_state_dict", "optimizer"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            return content[name]
    raise StageError("the checkpoint has no optimizer_state_dict")
