"""`coreml.convert`: the model as a Core ML package, converted but not proven: Core ML runs on macOS alone."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import (
    Context,
    Field,
    Folder,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
    first_line,
)

from ..model import bundles, protos
from ..model.bundles import Bundle
from ..model.compare import eps_limit, largest
from ..torch.trace import DependsOnInputs
from . import packaged, programs

_STATUS = "converted, not proven: Core ML runs on macOS alone; run proof/compare_on_mac.py there"
_SCRIPT = "compare_on_mac.py"
_LARGEST = 16
_HALF = 1e-2
_WHERE = "choose by torch.where, or use onnx.export: the package would have one branch only"


class CoremlConvert(Stage):
    """Convert the model to a Core ML package, and read back its names, types and sizes.

    Core ML runs only on macOS, so the package itself is not run and compared; the record says so.
    The program from which it is converted is compared with the original. The output `proof`
    compares the package on a Mac.
    """

    uses = "coreml.convert"
    packages = ("coremltools", "torch", "numpy")
    preload = ("torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "coreml"

    class Params(StageParams):
        """How to convert."""

        precision: Literal["float32", "float16"] = Field(
            "float32", description="type of weights and sums; the Neural Engine runs only float16"
        )
        target: Literal["iOS16", "iOS17", "iOS18"] = Field(
            "iOS16", description="the oldest system that runs it, with the macOS of the same year"
        )
        largest: dict[str, int] = Field(
            default={}, description="upper bound of each dynamic axis (default: `max`, else 16 or the cases')"
        )

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The package, and what proves it."""

        model: Folder = Output("model.mlpackage", "an ML program")
        proof: Folder = Output("proof", "compare_on_mac.py and the reference cases: run it on a Mac")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Make a program of torch, compare that, convert it, read the package back."""
        bundle = bundles.load_bundle(inputs.model)
        made = _first_converted(ctx, bundle, params)
        made.save(str(outputs.model))
        packaged.clean(outputs.model)
        packaged.check_ports(bundle, outputs.model)
        _write_proof(bundle, outputs.proof, params)
        ctx.log(_STATUS)
        ctx.figure("status", _STATUS)
        ctx.figure("bytes", protos.size_bytes(outputs.model))


def _first_converted(ctx: Context, bundle: Bundle, params: CoremlConvert.Params) -> Any:
    """Return what coremltools makes of a trace, or of an exported program where it refuses the trace."""
    ranges = _ranges(bundle, params.largest)
    refused: list[StageError] = []
    for way, make in (("a trace", programs.traced), ("an exported program", programs.exported)):
        ctx.progress(0.1 + 0.4 * len(refused), f"converting {way}")
        try:
            return _converted(bundle, make(bundle, ranges), ranges, params)
        except StageError as error:
            ctx.log(f"{way}: {error}")
            refused.append(error)
    chooses = isinstance(refused[0], DependsOnInputs)
    raise StageError(refused[0].message, fix=_WHERE if chooses else refused[0].fix)


def _converted(
    bundle: Bundle, program: Any, ranges: Mapping[str, tuple[int, int]], params: CoremlConvert.Params
) -> Any:
    coremltools = _library()
    outputs = [coremltools.TensorType(name=port.name) for port in bundle.outputs]
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return coremltools.convert(
                program,
                convert_to="mlprogram",
                inputs=_inputs(bundle, ranges),
                outputs=outputs,
                compute_precision=getattr(coremltools.precision, params.precision.upper()),
                minimum_deployment_target=coremltools.target[params.target],
                skip_model_load=True,
            )
        except Exception as error:
            raise StageError(f"coremltools can't convert the model: {first_line(error)}",
                             fix="replace that operator, or use mobile.executorch") from error  # fmt: skip


def _library() -> Any:
    """Return coremltools, without what it says of the libraries beside it."""
    logging.getLogger().setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
    return coremltools


def _inputs(bundle: Bundle, ranges: Mapping[str, tuple[int, int]]) -> list[Any]:
    """Return the inputs as Core ML has them, axes of one label with one range."""
    import numpy as np

    coremltools = _library()
    dims = {
        label: coremltools.RangeDim(low, high, default=max(low, 1)) for label, (low, high) in ranges.items()
    }
    kinds = {"float16": np.float16, **dict.fromkeys(("int32", "int64"), np.int32)}
    return [
        coremltools.TensorType(
            name=port.name,
            shape=[dims[port.dynamic[i]] if i in port.dynamic else size for i, size in enumerate(port.shape)],
            dtype=kinds.get(port.dtype, np.float32),
        )
        for port in bundle.inputs
    ]


def _ranges(bundle: Bundle, largest: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return label → smallest and largest size. Raises StageError for a label that the model lacks."""
    seen: dict[str, int] = {}
    for port in bundle.inputs:
        for place, label in port.dynamic.items():
            seen[label] = max(seen.get(label, 1), *(c.inputs[port.name].shape[place] for c in bundle.cases))
    unknown = [label for label in largest if label not in seen]
    if unknown:
        known = ", ".join(seen) or "none"
        raise StageError(f"largest: the model has no dynamic axis {unknown[0]!r}, only {known}")
    return {
        label: (bundle.axes[label].min, largest.get(label) or bundle.axes[label].max or max(size, _LARGEST))
        for label, size in seen.items()
    }


def _write_proof(bundle: Bundle, folder: Path, params: CoremlConvert.Params) -> None:
    """Write what compares the package with the reference cases, and the limits of each output."""
    folder.mkdir()
    limits: dict[str, dict[str, float]] = {}
    for case in bundle.cases:
        found = {name: case.allowed.get(name, eps_limit(array)) for name, array in case.outputs.items()}
        if params.precision == "float16":
            found = {name: max(limit, _HALF * largest(case.outputs[name])) for name, limit in found.items()}
        limits[case.name] = found
    text = json.dumps(limits, indent=2, sort_keys=True)
    (folder / "limits.json").write_text(text + "\n", "utf-8")
    shutil.copyfile(bundle.folder / "reference.npz", folder / "reference.npz")
    shutil.copyfile(Path(__file__).with_name(_SCRIPT), folder / _SCRIPT)
