"""`model.prepare`: weights and a factory → a checked model bundle with reference outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    StageParams,
)

from . import bundles, loading, state_dicts, tensor_files
from .checklist import Eager, Ports, batches, checklist, digests, judged, record
from .examples import Dynamic, Example, axes_of, ports_of
from .precision import Precise
from .variation import Source, explore, output_port

if TYPE_CHECKING:
    from torch import nn

    from .bundles import Case


_SAID = {
    "initial": "missing in the checkpoint, initialised by the factory",
    "dropped": "in the checkpoint only, dropped",
    "narrowed": "rounded to the model's narrower type",
    "refit": "prefix added to (+) or removed from (-) every name to match the model",
}


class ModelPrepare(Stage):
    """Load the weights into the model, check it, and store what it computes as the reference.

    The pre-save checklist: eval mode, CPU, no gradients, expected shapes, finite outputs, batch
    of one agrees with a batch of many, deterministic, no state that a forward pass changes.
    """

    uses = "model.prepare"
    packages = ("torch", "safetensors", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "torch"

    class Params(StageParams):
        """The model."""

        factory: Code = Field(
            description="the function or class that builds the nn.Module, as path/to/file.py:name"
        )
        kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
        example: Example | dict[str, Example] = Field(
            description="one example input, or one for each argument of forward()"
        )
        dynamic: Dynamic | None = Field(
            None,
            description="input → axis → name of a variable size, or {name, multiple_of, min, max} "
            "(default: axis 0 is the batch)",
        )
        expect_shape: list[int] | dict[str, list[int]] | None = Field(
            None, description="the output's shape for the example, or one for each output"
        )
        nonfinite: Literal["refuse", "allow"] = Field(
            "refuse",
            description="whether outputs may hold inf and nan; conversions must keep them",
        )
        output_names: list[str] | None = Field(None, description="names of the flattened outputs")
        allow_unexpected: list[str] = Field(
            default=[], description="patterns (`aux.*`) of keys in the weights that the model doesn't have"
        )
        allow_missing: list[str] = Field(
            default=[], description="patterns of the model's keys that keep their initial values"
        )
        batch_tolerance: float | None = Field(
            None, ge=0,
            description="how far a sample's result may depend on its batch "
            "(default: 1e-4, and for half types 16 units of their rounding)",
        )  # fmt: skip

    class Inputs(StageInputs):
        """The weights."""

        weights: File = Field(description="weights.safetensors of checkpoint.state_dict")
        samples: File | None = Field(
            None, description="an .npz of real samples: by input name, or `x` for the only input"
        )

    class Outputs(StageOutputs):
        """The bundle."""

        model: Folder = Output("model", "the input of every conversion")
        checklist: File = Output("checklist.json", "the result of the pre-save checklist")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Build, load, check, run, store."""
        module = bundles.build_module(ctx.load(params.factory), params.kwargs, params.factory)
        loaded = _load(ctx, module, params, inputs.weights)
        bundles.frozen(module)
        given, batch, named = ports_of(module, params.example, params.dynamic)
        samples = bundles.read_arrays(inputs.samples) if inputs.samples else None
        eager, before = Eager(module, params.output_names), digests(module)
        found = explore(Source(given, batch, samples), axes_of(params.dynamic, given), eager)
        outs = [output_port(name, dtype, found, batch) for name, dtype in eager.dtypes.items()]
        ports = Ports([port for port, _ in given], outs)
        independent = batches(eager, found, ports, params.batch_tolerance, named=named)
        if not named and batch is not None:
            ports, independent = judged(batch, ports, independent)
        lines = checklist(eager, found, ports, before, independent,
                          expect_shape=params.expect_shape, nonfinite=params.nonfinite)  # fmt: skip
        exact = Precise.of(module)
        described = {
            "precision": {c.name: exact.allowed(c.inputs, c.outputs, eager.dtypes) for c in found.cases},
            "axes": [axis.as_dict() for axis in found.axes.values()],
        }
        _write(outputs, ctx, inputs, params, ports, described, found.cases)
        if loaded.initial or loaded.dropped:  # The bundle's weights are exactly those of the module.
            state = state_dicts.find_state_dict(module, None)[0]
            tensor_files.write(outputs.model / "weights.safetensors", state)
        ctx.figure("parameters", sum(p.numel() for p in module.parameters()))
        record(ctx, lines, outputs.checklist)


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


def _write(
    outputs: ModelPrepare.Outputs,
    ctx: Context,
    inputs: ModelPrepare.Inputs,
    params: ModelPrepare.Params,
    ports: Ports,
    described: Mapping[str, Any],
    cases: Sequence[Case],
) -> None:
    folder = outputs.model
    folder.mkdir(exist_ok=True)
    shutil.copyfile(inputs.weights, folder / "weights.safetensors")
    for name, path in sorted(ctx.code_files.items()):
        place = folder / "code" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    data = {
        "factory": params.factory,
        "kwargs": params.kwargs,
        # Nothing reads them: they make the keys of the conversions depend on what the code imports.
        "packages": {n: v for n, v in ctx.packages.items() if n not in ModelPrepare.packages},
        "inputs": [port.as_dict() for port in ports.inputs],
        "outputs": [port.as_dict() for port in ports.outputs],
        **described,
    }
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "bundle.json").write_text(text + "\n", "utf-8")
    bundles.write_cases(folder / "reference.npz", cases)
