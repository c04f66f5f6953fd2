"""`model.prepare`: weights and a factory → a checked model bundle with reference outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    File,
    Folder,
    Output,
    Stage,
    StageInputs,
    StageOutputs,
)

from . import bundles, config_files, loading, npz, state_dicts, tensor_files
from .examples import Dynamic, Example, Given, axes_of, ports_of
from .ordering import refuse_other_order
from .preparing import Asked, Built, prepare
from .tables import with_ranges
from .variation import Source

if TYPE_CHECKING:
    from torch import nn


_SAID = {
    "initial": "missing in the checkpoint, initialised by the factory",
    "dropped": "in the checkpoint only, dropped",
    "narrowed": "rounded to the model's narrower type",
    "refit": "prefix added to (+) or removed from (-) every name to match the model",
}


class ModelPrepare(Stage):
    """Load the weights into the model, check it, and store what it computes as the reference.

    The pre-save checklist: eval mode, CPU, no gradients, expected shapes, finite outputs, the same
    result for a sample alone and in a batch, deterministic, no state that a forward pass changes,
    outputs that depend on the inputs.
    """

    uses = "model.prepare"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(Asked):
        """The model."""

        factory: Code = Field(
            description="the function or class that builds the nn.Module, as path/to/file.py:name "
            "or, of an installed library, package.module:name"
        )
        kwargs: dict[str, Any] = Field(
            default={}, description="keyword arguments of the factory, over those of the `config`"
        )
        example: Given = Field(
            description="one example input, or one for each argument of forward(), nested as the argument is"
        )
        dynamic: Dynamic | None = Field(
            None,
            description="input → axis → name of a variable size, or {name, multiple_of, min, max} "
            "(default: axis 0 is the batch)",
        )
        allow_unexpected: list[str] = Field(
            default=[], description="patterns (`aux.*`) of keys in the weights that the model doesn't have"
        )
        allow_missing: list[str] = Field(
            default=[], description="patterns of the model's keys that keep their initial values"
        )

    class Inputs(StageInputs):
        """The weights."""

        weights: File = Field(description="weights.safetensors of checkpoint.state_dict")
        config: File | None = Field(
            None,
            description="a JSON, YAML or TOML file with the factory's keyword arguments; as a whole where it "
            "has a parameter `config`",
        )
        samples: File | None = Field(
            None, description="an .npz of real samples: by input name, or `x` for the only input"
        )

    class Outputs(StageOutputs):
        """The bundle."""

        model: Folder = Output("model", "the input of every conversion")
        checklist: File = Output("checklist.json", "the result of the pre-save checklist")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Build, load, check, run, store."""
        ctx.progress(0, "building the model and loading its weights")
        factory = ctx.load(params.factory)
        kwargs = config_files.arguments(factory, inputs.config, params.kwargs)
        module = bundles.build_module(factory, kwargs, params.factory)
        loaded = _load(ctx, module, params, inputs.weights)
        weights = inputs.weights
        if (
            loaded.initial or loaded.dropped or loaded.refit
        ):  # The bundle's weights are exactly those of the module.
            weights = ctx.workdir / "weights.safetensors"
            tensor_files.write(weights, state_dicts.find_state_dict(module, None)[0])
        given, batch, named = ports_of(module, params.example, params.dynamic)
        if not inputs.samples:
            given = with_ranges(module, given)
        samples = npz.read_arrays(inputs.samples) if inputs.samples else None
        packages = {n: v for n, v in ctx.packages.items() if n not in self.packages}
        cases = prepare(
            ctx, module, Source(given, batch, samples), axes_of(params.dynamic, given), params,
            Built(params.factory, kwargs, ctx.code_files, packages, weights),
            outputs.model, outputs.checklist, named=named,
        )  # fmt: skip
        if not isinstance(params.example, Example):
            ports = [port for port, _ in given]
            refuse_other_order(module, ports, params.example, cases[0], params.output_names)


def _load(ctx: Context, module: nn.Module, params: ModelPrepare.Params, weights: Path) -> loading.Loaded:
    """Load the weights, and say what was not simply one value for each name."""
    loaded = loading.load(
        module, tensor_files.read(weights),
        allow_missing=params.allow_missing, allow_unexpected=params.allow_unexpected,
    )  # fmt: skip
    figures: dict[str, Any] = {"initial": loaded.initial, "dropped": loaded.dropped}
    figures |= {"narrowed": loaded.narrowed, "refit": loaded.refit}
    for name, said in figures.items():
        if said:
            ctx.figure(name, said)
            ctx.log(f"{_SAID[name]}: {said if isinstance(said, str) else ', '.join(said)}")
    return loaded
