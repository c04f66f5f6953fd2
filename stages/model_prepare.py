"""`model.prepare`: weights and a factory → a checked model bundle with reference outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from ._parity import both_finite, largest
from ._precision import Precise, eps_of

if TYPE_CHECKING:
    import torch
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
        nonfinite: Literal["refuse", "allow"] = Field(
            "refuse",
            description="whether outputs may hold inf and nan; conversions must keep them",
        )
        output_names: list[str] | None = Field(None, description="names of the flattened outputs")
        allow_unexpected: list[str] = Field(
            default=[], description="patterns (`aux.*`) of keys in the weights that the model doesn't have"
        )
        allow_missing: list[str] = Field(
            default=[], description="patterns of the model's keys that keep the values of the factory"
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
        found = {name: _eager(module, case, params.output_names) for name, case in arrays.items()}
        dtypes = {n: str(t.dtype).removeprefix("torch.") for n, t in next(iter(found.values())).items()}
        cases = [
            Case(name, arrays[name], {n: _bundle.to_array(t) for n, t in result.items()})
            for name, result in found.items()
        ]
        lines = _checklist(module, cases, params, ports[0][0], before, dtypes)
        text = json.dumps(lines, indent=2, ensure_ascii=False)
        outputs.checklist.write_text(text + "\n", "utf-8")
        exact = Precise.of(module)
        precision = {case.name: exact.allowed(case.inputs, case.outputs, dtypes) for case in cases}
        described = {"precision": precision, "outputs": dtypes}
        _write(outputs, ctx, inputs, params, [port for port, _ in ports], cases, described)
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
    return {name: _bundle.to_array(tensor) for name, tensor in _eager(module, arrays, names).items()}


def _eager(module: nn.Module, arrays: Mapping[str, Any], names: list[str] | None) -> dict[str, torch.Tensor]:
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
    return _bundle.flatten_outputs(result, names)


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
    dtypes: Mapping[str, str],
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
    check("finite outputs", *_finite(cases, params))
    check("batch of one agrees", *_batches(module, cases, params, dtypes))
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


def _finite(cases: list[Case], params: ModelPrepare.Params) -> tuple[bool, str]:
    """Say where an output is not finite, and whether that was allowed."""
    import numpy as np

    for case in cases:
        for name, array in case.outputs.items():
            places = np.argwhere(~np.isfinite(array))
            if not len(places):
                continue
            value = array[tuple(places[0])]
            found = f"output {name!r} is {value:g} at {places[0].tolist()} of {case.name}"
            if params.nonfinite == "allow":
                return True, f"{found}: allowed"
            return False, f"{found}; where the model means that, set `nonfinite: allow`"
    return True, "every value"


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


def _batches(
    module: nn.Module, cases: list[Case], params: ModelPrepare.Params, dtypes: Mapping[str, str]
) -> tuple[bool, str]:
    """Compare the first sample alone with the same sample inside its batch."""
    import numpy as np

    case = cases[0]
    size = len(next(iter(case.inputs.values()))) if case.inputs else 0
    if len(cases) < 2 or size < 2:
        return True, "the batch is fixed"
    single = run_eager(module, {n: a[:1] for n, a in case.inputs.items()}, params.output_names)
    worst, allowed = 0.0, params.batch_tolerance or 1e-4
    for name, array in case.outputs.items():
        if array.ndim and len(array) == size and single[name].shape[1:] == array.shape[1:]:
            kind = np.complex128 if array.dtype.kind == "c" else np.float64
            alone, within = single[name].astype(kind), array[:1].astype(kind)
            try:
                finite = both_finite(f"output {name!r} of one sample", within, alone)
            except GateError as error:
                return False, error.message
            scale = max(1.0, largest(array[:1]))
            worst = max(worst, float(np.abs(alone[finite] - within[finite]).max(initial=0)) / scale)
            if params.batch_tolerance is None:
                allowed = max(allowed, 16 * (eps_of(dtypes[name]) or 0.0))
    return worst <= allowed, f"relative difference {worst:.2g}, allowed {allowed:g}"


def _write(
    outputs: ModelPrepare.Outputs,
    ctx: Context,
    inputs: ModelPrepare.Inputs,
    params: ModelPrepare.Params,
    ports: list[Port],
    cases: list[Case],
    described: Mapping[str, Any],
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
        "precision": described["precision"],
        "inputs": [port.as_dict() for port in ports],
        "outputs": [
            _output_port(name, dtype, cases, ports, sized).as_dict()
            for name, dtype in described["outputs"].items()
        ],
    }
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "bundle.json").write_text(text + "\n", "utf-8")
    _bundle.write_cases(folder / "reference.npz", cases)


def _output_port(name: str, dtype: str, cases: list[Case], ports: list[Port], labels: set[str]) -> Port:
    """Return an output; an axis is dynamic if its size follows that of a dynamic input axis."""
    array = cases[0].outputs[name]
    dynamic: dict[int, str] = {}
    for axis in range(array.ndim):
        sizes = [case.outputs[name].shape[axis] for case in cases]
        for label in sorted(labels, key=lambda text: (text != "batch", text)):
            if len(set(sizes)) > 1 and sizes == [_size_of(label, case, ports) for case in cases]:
                dynamic[axis] = label
                break
    return Port(name, dtype, tuple(array.shape), dynamic)


def _size_of(label: str, case: Case, ports: list[Port]) -> int:
    return next(
        int(case.inputs[port.name].shape[axis])
        for port in ports
        for axis, found in port.dynamic.items()
        if found == label
    )
