"""`model.prepare`: weights and a factory → a checked model bundle with reference outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import (
    Code,
    Context,
    Field,
    File,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from . import _bundle, _safetensors, _state_dict, _weights
from ._bundle import Case, Port
from ._calls import call
from ._examples import Example, ports_of, reference_inputs

if TYPE_CHECKING:
    from torch import nn


_SHAPES = (
    "set `example.shape` to what forward() takes; where that is a dict or a list, let the factory "
    "return a module around it that takes tensors"
)


_SAID = {
    "initial": "missing in the checkpoint, left as the factory makes them",
    "dropped": "in the checkpoint only, dropped",
    "narrowed": "rounded to the model's narrower type",
    "refit": "prefix put before (+) or taken off (-) every name to fit the model",
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

        factory: Code = Field(description="what builds the nn.Module, as path/to/file.py:name")
        kwargs: dict[str, Any] = Field(default={}, description="keyword arguments of the factory")
        example: Example | dict[str, Example] = Field(
            description="one example input, or one for each argument of forward()"
        )
        dynamic: dict[str, dict[str, str]] | None = Field(
            None, description="input → axis → name of what may vary (default: axis 0 is the batch)"
        )
        expect_shape: list[int] | dict[str, list[int]] | None = Field(
            None, description="the output's shape for the example, or one for each output"
        )
        output_names: list[str] | None = Field(None, description="names of the flattened outputs")
        allow_unexpected: list[str] = Field(
            default=[], description="patterns (`aux.*`) of keys in the weights that the model doesn't have"
        )
        allow_missing: list[str] = Field(
            default=[], description="patterns of the model's keys that keep the values of the factory"
        )
        batch_tolerance: float = Field(
            1e-4, ge=0, description="how far a sample's result may depend on its batch"
        )

    class Inputs(StageInputs):
        """The weights."""

        weights: File = Field(description="weights.safetensors of checkpoint.state_dict")
        samples: File | None = Field(
            None, description="an .npz of real samples: by input name, or `x` for the only input"
        )

    class Outputs(StageOutputs):
        """The bundle."""

        model: Folder = Output("model", "what every conversion starts from")
        checklist: File = Output("checklist.json", "the pre-save checklist, line by line")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Build, load, check, run, store."""
        module = _bundle.build_module(ctx.load(params.factory), params.kwargs, params.factory)
        loaded = _load(ctx, module, params, inputs.weights)
        _bundle.frozen(module)
        ports = ports_of(module, params.example, params.dynamic)
        samples = _bundle.read_arrays(inputs.samples) if inputs.samples else None
        arrays = reference_inputs(ports, samples)
        before = _digests(module)
        cases = [
            Case(name, case, run_eager(module, case, params.output_names)) for name, case in arrays.items()
        ]
        lines = _checklist(module, cases, params, ports[0][0], before)
        text = json.dumps(lines, indent=2, ensure_ascii=False)
        outputs.checklist.write_text(text + "\n", "utf-8")
        _write(outputs, ctx, inputs, params, [port for port, _ in ports], cases)
        if loaded.initial or loaded.dropped:  # The bundle's weights are exactly those of the module.
            state = _state_dict.find_state_dict(module, None)[0]
            _safetensors.write(outputs.model / "weights.safetensors", state)
        failed = [f"{name} ({line['detail']})" for name, line in lines.items() if not line["ok"]]
        ctx.figure("checks", len(lines))
        ctx.figure("checklist", _as_table(lines))  # type: ignore[arg-type]
        ctx.figure("parameters", sum(p.numel() for p in module.parameters()))
        if failed:
            raise GateError(f"the pre-save checklist fails: {'; '.join(failed)}")


def _load(ctx: Context, module: nn.Module, params: ModelPrepare.Params, weights: Path) -> _weights.Loaded:
    """Load the weights, and say what was not simply one value for each name."""
    allowed = {"allow_missing": params.allow_missing, "allow_unexpected": params.allow_unexpected}
    loaded = _weights.load(module, _safetensors.read(weights), **allowed)
    figures: dict[str, Any] = {"initial": loaded.initial, "dropped": loaded.dropped}
    figures |= {"narrowed": loaded.narrowed, "refit": loaded.refit}
    for name, said in figures.items():
        if said:
            ctx.figure(name, said)
            ctx.log(f"{_SAID[name]}: {said if isinstance(said, str) else ', '.join(said)}")
    return loaded


def _as_table(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return {n: {"result": "pass" if r["ok"] else "fail", "detail": r["detail"]} for n, r in lines.items()}


def run_eager(module: nn.Module, arrays: Mapping[str, Any], names: list[str] | None) -> dict[str, Any]:
    """Run the module under no_grad; return its outputs as arrays by name.

    Raises StageError with the user's line where the module refuses the inputs.
    """
    import torch

    inputs = _bundle.tensors(arrays, list(arrays))
    try:
        with torch.no_grad():
            result = call(module, dict(zip(arrays, inputs, strict=True)))
    except StageError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{n} {tuple(a.shape)}" for n, a in arrays.items())
        where = _bundle.user_line(error)
        said = f"the model refuses the example {shapes}: {_bundle.first_line(error)}{where}"
        raise StageError(said, fix=_SHAPES) from error
    flat = _bundle.flatten_outputs(result, names)
    return {name: tensor.detach().cpu().numpy() for name, tensor in flat.items()}


def _digests(module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every tensor: a copy to compare with would double the memory."""
    import hashlib

    import torch

    return {
        name: hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }


def _checklist(
    module: nn.Module,
    cases: list[Case],
    params: ModelPrepare.Params,
    first: Port,
    before: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    import numpy as np

    lines: dict[str, dict[str, Any]] = {}

    def check(name: str, ok: bool, detail: str) -> None:
        lines[name] = {"ok": bool(ok), "detail": detail}

    training = [name for name, part in module.named_modules() if part.training]
    check(
        "eval mode",
        not training,
        f"in training mode: {training[:3]}" if training else "every module",
    )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    elsewhere = [name for name, t in tensors if t.device.type != "cpu"]
    check("CPU tensors", not elsewhere, f"elsewhere: {elsewhere[:3]}" if elsewhere else "every tensor")
    grads = [name for name, p in module.named_parameters() if p.requires_grad]
    check("no gradients", not grads, f"requires grad: {grads[:3]}" if grads else "every parameter")
    check("expected shapes", *_shapes(cases, params, first))
    finite = all(np.isfinite(a).all() for c in cases for a in c.outputs.values())
    check("finite outputs", finite, "every value" if finite else "an output has inf or nan")
    check("batch of one agrees", *_batches(module, cases, params))
    again = run_eager(module, cases[0].inputs, params.output_names)
    same = all(np.array_equal(again[n], a, equal_nan=True) for n, a in cases[0].outputs.items())
    check(
        "deterministic",
        same,
        "two runs, equal bits" if same else "two runs differ: is something random?",
    )
    after = _digests(module)
    changed = [name for name, digest in before.items() if after[name] != digest]
    check(
        "no training-only state",
        not changed,
        f"a forward pass changes {changed[:3]}" if changed else "kept",
    )
    return lines


def _shapes(cases: list[Case], params: ModelPrepare.Params, first: Port) -> tuple[bool, str]:
    found = {name: list(array.shape) for name, array in cases[0].outputs.items()}
    wanted = params.expect_shape
    if wanted is None:
        return True, ", ".join(f"{name} {shape}" for name, shape in found.items())
    if isinstance(wanted, list):
        wanted = {next(iter(found)): wanted}
    batch = next(iter(cases[0].inputs.values())).shape[:1]
    for name, shape in wanted.items():
        if name not in found:
            return False, f"there is no output {name!r}, only {', '.join(found)}"
        expected = [*batch, *shape[1:]] if 0 in first.dynamic and shape else shape
        if found[name] != expected:
            return False, f"{name} is {found[name]}, expected {expected}"
    return True, ", ".join(f"{name} {shape}" for name, shape in wanted.items())


def _batches(module: nn.Module, cases: list[Case], params: ModelPrepare.Params) -> tuple[bool, str]:
    """Compare the first sample alone with the same sample inside its batch."""
    import numpy as np

    case = cases[0]
    size = len(next(iter(case.inputs.values()))) if case.inputs else 0
    if len(cases) < 2 or size < 2:
        return True, "the batch is fixed"
    single = run_eager(module, {n: a[:1] for n, a in case.inputs.items()}, params.output_names)
    worst = 0.0
    for name, array in case.outputs.items():
        if array.ndim and len(array) == size and single[name].shape[1:] == array.shape[1:]:
            kind = np.complex128 if array.dtype.kind == "c" else np.float64
            alone, within = single[name].astype(kind), array[:1].astype(kind)
            scale = max(1.0, float(np.abs(within).max(initial=0)))
            worst = max(worst, float(np.abs(alone - within).max(initial=0)) / scale)
    ok = worst <= params.batch_tolerance
    return ok, f"relative difference {worst:.2g}, allowed {params.batch_tolerance:g}"


def _write(
    outputs: ModelPrepare.Outputs,
    ctx: Context,
    inputs: ModelPrepare.Inputs,
    params: ModelPrepare.Params,
    ports: list[Port],
    cases: list[Case],
) -> None:
    folder = outputs.model
    folder.mkdir(exist_ok=True)
    shutil.copyfile(inputs.weights, folder / "weights.safetensors")
    for name, path in sorted(ctx.code_files.items()):
        place = folder / "code" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    sized = {label for port in ports for label in port.dynamic.values()}
    data = {
        "factory": params.factory,
        "kwargs": params.kwargs,
        # Nothing reads them: they make the keys of the conversions depend on what the code imports.
        "packages": {n: v for n, v in ctx.packages.items() if n not in ModelPrepare.packages},
        "inputs": [port.as_dict() for port in ports],
        "outputs": [_output_port(name, cases, ports, sized).as_dict() for name in cases[0].outputs],
    }
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "bundle.json").write_text(text + "\n", "utf-8")
    _bundle.write_cases(folder / "reference.npz", cases)


def _output_port(name: str, cases: list[Case], ports: list[Port], labels: set[str]) -> Port:
    """Return an output; an axis is dynamic if its size follows that of a dynamic input axis."""
    array = cases[0].outputs[name]
    dynamic: dict[int, str] = {}
    for axis in range(array.ndim):
        sizes = [case.outputs[name].shape[axis] for case in cases]
        for label in sorted(labels, key=lambda text: (text != "batch", text)):
            if len(set(sizes)) > 1 and sizes == [_size_of(label, case, ports) for case in cases]:
                dynamic[axis] = label
                break
    return Port(name, str(array.dtype), tuple(array.shape), dynamic)


def _size_of(label: str, case: Case, ports: list[Port]) -> int:
    return next(
        int(case.inputs[port.name].shape[axis])
        for port in ports
        for axis, found in port.dynamic.items()
        if found == label
    )
