"""`checkpoint.inspect`: what a file or a folder is, what is in it, and what builds its model."""

from __future__ import annotations

import json
from pathlib import Path
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

from ..model import bundles, programs, protos, state_dicts
from ..model.extra_state import SUFFIX
from . import first_inputs, fitting, libraries, pickles, reader, sources, training


class CheckpointInspect(Stage):
    """Inspect a trained model: the kind of its file, its tensors, and the code that builds it.

    Models of timm and torchvision are recognised by the names and shapes of their weights. If a
    factory is given, the stage tries whether it builds the model, which arguments fit, and which
    input the model accepts. `init` and `convert` use this stage.
    """

    uses = "checkpoint.inspect"
    packages = ("torch", "safetensors", "numpy", "onnx", "timm", "torchvision")
    preload = ("torch", "safetensors.torch")
    extra = "torch"

    class Params(StageParams):
        """What to try."""

        factory: Code | None = Field(None, description="the function or class that may build the nn.Module")
        code: Code | None = Field(None, description="defines the classes of a pickled module")
        kwargs: dict[str, Any] = Field(
            default={}, description="keyword arguments of the factory, over those that the checkpoint has"
        )
        shape: list[int] | None = Field(
            None, description="the shape of one example input (default: one is found)"
        )

    class Inputs(StageInputs):
        """The thing."""

        model: File | Folder = Field(description="a checkpoint, a trainer's or a Hub folder, a model file")

    class Outputs(StageOutputs):
        """What was found."""

        found: File = Output("found.json", "the kind, the tensors, what builds the model")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Tell the kind, read, recognise, try."""
        kind = sources.kind(inputs.model)
        found: dict[str, Any] = {"kind": kind}
        if kind == "transformers":
            found |= sources.of_transformers(inputs.model)
        elif kind == "onnx":
            found |= sources.of_onnx(protos.load_proto(inputs.model, weights=False))
        else:
            found |= _of_checkpoint(ctx, inputs.model, params)
        outputs.found.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", "utf-8")
        ctx.figure("kind", found["kind"])
        for name in ("format", "class", "parameters"):
            if name in found:
                ctx.figure(name, found[name])


def _of_program(ctx: Context, where: reader.Found, params: CheckpointInspect.Params) -> dict[str, Any]:
    """Return what a program takes: one of torch.export says it itself, TorchScript is tried."""
    kind: Any = where.format
    programs.refuse_without_trust(kind, trust=ctx.trust, instead="start from the training checkpoint")
    if kind == "pt2":
        return {"kind": kind, "fit": {"example": None, "dynamic": None}}
    program = programs.script(where.path)
    programs.refuse_other_than_tensors(program)
    found = first_inputs.found(bundles.frozen(program), params.shape)
    if found is None:
        raise StageError("no input was found that the TorchScript program takes",
                         fix="give the shape of its only input (`--shape 1,3,224,224`), or write a "
                         f"pipeline with `model.program` and `{programs.example_line(program)}`")  # fmt: skip
    return {"kind": kind, "fit": found._asdict()}


def _of_checkpoint(ctx: Context, path: Path, params: CheckpointInspect.Params) -> dict[str, Any]:
    where = reader.find(path)
    if where.format in ("torchscript", "pt2"):
        return _of_program(ctx, where, params)
    if where.format == "adapter":
        return {"kind": "adapter", "base": sources.base_of(where.path)}
    if params.code is not None:
        pickles.define_in_main(params.code, ctx.load(params.code))
    content = reader.read(path, trust=ctx.trust)
    weights, key = state_dicts.find_state_dict(content, None)
    weights = state_dicts.strip_wrappers(weights, None)
    tensors = {name: t for name, t in weights.items() if not name.endswith(SUFFIX)}
    if not any(t.numel() for t in tensors.values()):
        raise StageError("every tensor of the checkpoint is empty", fix="save it again after the training")
    arguments = training.arguments(content)
    found: dict[str, Any] = {
        "format": where.format,
        "module": training.module_class(content, key),
        "trainer": training.trainer(content, path),
        "key": key,
        "epoch": training.epoch(content),
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "tensors": {name: list(t.shape) for name, t in tensors.items()},
        "library": None,
    }
    if params.factory is None:
        shapes = {name: tuple(t.shape) for name, t in tensors.items()}
        found["library"] = libraries.recognised(shapes, training.architecture(content, where.path))
        return found
    build = fitting.builder(ctx.load(params.factory), params.factory)
    found["fit"] = fitting.fit(build, weights, arguments, params.kwargs, params.shape)
    return found
