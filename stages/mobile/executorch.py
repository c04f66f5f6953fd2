"""`mobile.executorch`: the model for ExecuTorch (.pte), on the XNNPACK backend."""

from __future__ import annotations

import itertools
import logging
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import (
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
    first_line,
)

from ..model import bundles, calibration, fresh_inputs, judging
from ..model.bundles import Bundle, Case
from ..model.compare import Model, compare, gate
from ..model.flattening import named_arrays
from ..torch import torchscript
from ..torch.export import dimension, refusal
from . import snippets

_LARGEST = 16
"""With XNNPACK an example below 16 silently lowers the axis' maximum."""

_MISSING = re.compile(r"Missing out variants: \{'([\w:.]+)'")


class MobileExecutorch(Stage):
    """Lower the model to ExecuTorch, load it with its runtime, and compare at every size.

    The program is also run at its largest sizes, because it can't process more than it was planned
    for. With `quantize: int8` weights and activations are int8, calibrated on samples.
    """

    uses = "mobile.executorch"
    packages = ("torch", "executorch", "torchao", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "mobile"

    class Params(calibration.Source, judging.Floors):
        """How to lower, and how close it must be: the floors are those of int8."""

        backend: Literal["xnnpack", "portable"] = Field(
            "xnnpack",
            description="which kernels to use; the portable ones run everywhere, about 100 times slower",
        )
        quantize: Literal["none", "int8"] = Field("none", description="int8 needs calibration samples")
        largest: dict[str, int] = Field(
            default={},
            description="smallest upper bound of each dynamic axis (default: `max`, else 16 or the cases')",
        )
        atol: float | None = Field(
            None, ge=0,
            description="absolute tolerance against eager, for float programs (default: by rounding)",
        )  # fmt: skip
        rtol: float | None = Field(
            None, ge=0, description="relative tolerance against eager, for float programs"
        )

    class Inputs(StageInputs):
        """The model and the samples."""

        model: Folder = Field(description="the bundle of model.prepare")
        calibration: File | Folder | None = Field(
            None,
            description="for int8: samples in an .npz, by input name or `x`, of pictures, or in a bundle",
        )

    class Outputs(StageOutputs):
        """The program, and code that runs it."""

        model: File = Output("model.pte", "loaded and run by ExecuTorch's runtime")
        snippets: Folder = Output("snippets", "Kotlin and Swift with the model's shapes")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Export, quantize if asked, lower, load, compare at the cases' and at the largest sizes."""
        bundle = bundles.load_bundle(inputs.model)
        largest = _largest_sizes(bundle, params.largest)
        case = _largest_case(bundle, largest)
        logging.getLogger().setLevel(logging.ERROR)
        kept: list[Mapping[str, Any]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = bundle.exportable()
            if params.quantize == "int8":
                slots = calibration.slots_of_bundle(bundle)
                samples = calibration.open_samples(ctx, params, inputs.calibration, slots)
                module = _quantized(bundle, module, case, largest, samples)
                kept = fresh_inputs.kept(samples)
            program, delegated = _lower(_export(bundle, module, case, largest), params.backend)
        outputs.model.write_bytes(program)
        cases = [*bundle.cases, *([case] if largest else [])]
        run = runner(outputs.model, bundle)
        if params.quantize == "none":
            found = compare(cases, run, atol=params.atol, rtol=params.rtol)
            gate(ctx, found, atol=params.atol, rtol=params.rtol)
        else:
            _judge_int8(ctx, params, bundle, run, cases, kept)
        snippets.write(outputs.snippets, "executorch", bundle.inputs, bundle.outputs)
        ctx.figure("bytes", outputs.model.stat().st_size)
        ctx.figure("delegated", delegated)
        ctx.figure("largest", largest)  # type: ignore[arg-type]


def _judge_int8(
    ctx: Context, params: MobileExecutorch.Params, bundle: Bundle, run: Model,
    cases: list[Case], samples: list[Mapping[str, Any]],
) -> None:  # fmt: skip
    eager = torchscript.runner(bundle.module(), bundle.input_names, bundle.output_names)
    fresh = [
        *fresh_inputs.from_cases(cases),
        *(fresh_inputs.from_samples(samples) if not _is_fixed(bundle) else ()),
    ]
    judged = {judging.REFERENCE: cases, judging.FRESH: judging.answered(eager, fresh)}
    judging.judge(ctx, params, run, judged, lambda: (
        "the calibration samples are all alike or don't cover these inputs, or a mask of infinite or very "
        "large values leaves no steps for the rest",
        "calibrate on varied real samples, or use `quantize: none`",
    ))  # fmt: skip


def _is_fixed(bundle: Bundle) -> bool:
    """Tell whether the model takes a number of samples that isn't one, and no other."""
    return any(
        slot.batch is not None and slot.shape[slot.batch] not in (None, 1)
        for slot in calibration.slots_of_bundle(bundle)
    )


def _largest_sizes(bundle: Bundle, given: Mapping[str, int]) -> dict[str, int]:
    """Return the size to plan each dynamic axis for, never below what the reference cases have.

    The sizes are different primes: where an axis happens to be as long as another one of some tensor
    (16 in a model with 4 x 4 pixels), lowering takes it for fixed.
    """
    seen: dict[str, int] = {}
    for port in bundle.inputs:
        for place, label in port.dynamic.items():
            seen[label] = max(seen.get(label, 1), *(c.inputs[port.name].shape[place] for c in bundle.cases))
    declared = {label: axis.max for label, axis in bundle.axes.items() if axis.max}
    for label, size in given.items():
        if label not in seen:
            raise StageError(
                f"largest: the model has no dynamic axis {label!r}, only {', '.join(seen) or 'none'}"
            )
        if size < seen[label]:
            raise StageError(f"largest: {label} is {size}, but a reference case has {seen[label]}")
    sizes: dict[str, int] = {}
    for label, size in sorted(seen.items()):
        axis, most = bundle.axes[label], declared.get(label)
        if most is not None and label not in given:
            sizes[label] = max(n for n in range(most + 1) if axis.allows(n))
            continue
        wanted = -(-given.get(label, max(size, _LARGEST)) // axis.multiple_of)
        grown = (n * axis.multiple_of for n in itertools.count(wanted) if _is_prime(n))
        sizes[label] = next(n for n in grown if n not in sizes.values())
    return sizes


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _largest_case(bundle: Bundle, largest: Mapping[str, int]) -> Case:
    """Return a case of the largest sizes: the first one's inputs, repeated, with eager's outputs."""
    import torch

    first = bundle.cases[0].inputs
    arrays = {port.name: bundles.tiled(first[port.name], port, largest) for port in bundle.inputs}
    with torch.no_grad():
        result = bundle.module()(*bundles.tensors(arrays, bundle.input_names))
    outputs = named_arrays(result, bundle.output_names)
    return Case("the largest sizes", arrays, outputs, batch=bundle.cases[0].batch)


def _export(bundle: Bundle, module: Any, case: Case, largest: Mapping[str, int]) -> Any:
    import torch

    dims = {label: dimension(bundle.axes[label], size) for label, size in largest.items()}
    shapes = tuple({axis: dims[label] for axis, label in p.dynamic.items()} or None for p in bundle.inputs)
    try:
        with torch.no_grad():
            return torch.export.export(
                module,
                bundles.tensors(case.inputs, bundle.input_names),
                dynamic_shapes=shapes if dims else None,
            )
    except Exception as error:
        raise refusal(error, largest.values()) from error


def _quantized(
    bundle: Bundle, module: Any, case: Case, largest: Mapping[str, int], samples: calibration.Samples
) -> Any:
    """Return the module quantized by PyTorch 2 Export: prepared, calibrated, converted."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(_export(bundle, module, case, largest).module(), quantizer)
    for sample in samples:
        prepared(*bundles.tensors(sample, bundle.input_names))
    converted = convert_pt2e(prepared)
    if not any("quantize_per" in str(node.target) for node in converted.graph.nodes):
        raise StageError("nothing was quantized: XNNPACK has no int8 kernel for any operator of the model",
                         fix="use `quantize: none`")  # fmt: skip
    return converted


def _lower(program: Any, backend: str) -> tuple[bytes, str]:
    """Return the program's bytes, and how many operators the backend took of how many."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    partitioners = [XnnpackPartitioner()] if backend == "xnnpack" else []
    try:
        before = sum(node.op == "call_function" for node in program.graph.nodes)
        edge = to_edge_transform_and_lower(program, partitioner=partitioners)
        calls = [str(n.target) for n in edge.exported_program().graph.nodes if n.op == "call_function"]
        buffer: bytes = edge.to_executorch().buffer
    except Exception as error:
        if missing := _MISSING.search(str(error)):
            said = f"the operator {missing.group(1)} has no kernel in ExecuTorch"
            raise StageError(said, fix="replace it in the model, or use mobile.lite") from error
        raise StageError(f"ExecuTorch can't lower the model: {first_line(error)}",
                         fix="try `backend: portable`, or mobile.lite") from error  # fmt: skip
    if backend == "xnnpack" and not any("executorch_call_delegate" in call for call in calls):
        raise GateError("XNNPACK supports no operator of the model: it would run about 100 times slower")
    rest = sum("executorch_call_delegate" not in call and "getitem" not in call for call in calls)
    return buffer, f"{max(before - rest, 0)} of {before} operators"


def runner(path: Path, bundle: Bundle) -> Model:
    """Return a program of ExecuTorch as a function of arrays by name."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    if method is None:
        raise StageError("ExecuTorch's runtime can't load the program")

    # A method whose program is gone crashes the process.
    def run(arrays: Mapping[str, Any], _program: Any = program) -> dict[str, Any]:
        try:
            result = method.execute(bundles.tensors(arrays, bundle.input_names))
        except RuntimeError as error:
            shapes = {name: tuple(array.shape) for name, array in arrays.items()}
            said = f"ExecuTorch can't run inputs of shape {shapes}: {first_line(error)}"
            raise StageError(said, fix="try `backend: portable`, or mobile.lite") from error
        outputs = result[len(result) - len(bundle.output_names) :]  # What the model writes into comes first.
        return {n: bundles.to_array(t).copy() for n, t in zip(bundle.output_names, outputs, strict=True)}

    return run
