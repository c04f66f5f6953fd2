"""`onnx.export`: the model as ONNX, proved against eager."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy_runner.sdk import (
    Context,
    Field,
    Folder,
    GateError,
    Output,
    Stage,
    StageError,
    StageInputs,
    StageOutputs,
)

from ..model import branches, bundles, moving, protos
from ..model.branches import Branches
from ..model.bundles import Bundle, Case
from ..model.compare import Model, Tolerances, compare, gate
from ..model.far import far_case
from ..torch.torchscript import runner, unfused
from . import naming, refusals
from .pooling import exact_pooling

_LOWEST_DYNAMO = 18


_SIZES = "say in `dynamic` which sizes it takes, as {name: height, multiple_of: 32}, or leave the axis out"
_ROUNDING = "if it is float32 rounding, pass real `samples` to model.prepare or raise `atol`"


class OnnxExport(Stage):
    """Export the model to ONNX and compare onnxruntime with eager on the reference cases and at far sizes.

    Both exporters of torch are used, the newer one first. The opset, the names and the dynamic axes
    are read back from the file: if they are not the requested ones, the stage fails.
    """

    uses = "onnx.export"
    packages = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")
    preload = ("torch", "torch.onnx", "safetensors.torch", "onnx", "onnxruntime", "onnxscript")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(Tolerances):
        """What to export."""

        opset: int = Field(20, ge=7, le=26, description="version of the standard operators")
        exporter: Literal["auto", "dynamo", "torchscript"] = Field(
            "auto", description="torch's newer exporter, its older one, or whichever supports the opset"
        )

    class Inputs(StageInputs):
        """The model."""

        model: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The ONNX model."""

        model: Folder = Output("model", "model.onnx, and model.onnx.data if it is over 500 MB")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Export, clean, read back, compare."""
        bundle = bundles.load_bundle(inputs.model)
        ctx.progress(0, "running the model on its reference cases")
        seen = _seen(bundle)  # First: its weights are gone when the exporter has its own.
        naming.refuse_shared(bundle.input_names, bundle.output_names)
        exporter, refused = _first_right(ctx, bundle, params, seen)
        shutil.move(_made_by(ctx, exporter), outputs.model)
        ctx.figure("opset", params.opset)
        ctx.figure("exporter", exporter)
        for way, error in refused.items():
            ctx.figure("refused", f"{way}: {error.message}")
        ctx.figure("bytes", protos.size_bytes(outputs.model))
        ctx.figure("cases", [case.name for case in bundle.cases])


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the model itself does: where it looks at its data, and what it computes at far sizes."""

    branches: Branches
    far: Case | None


def _seen(bundle: Bundle) -> _Seen:
    module = bundle.module()
    original = runner(module, bundle.input_names, bundle.output_names)
    return _Seen(branches.exercise(bundle, module), far_case(bundle, original))


def _first_right(
    ctx: Context, bundle: Bundle, params: OnnxExport.Params, seen: _Seen
) -> tuple[str, dict[str, StageError]]:
    """Return the first exporter whose file passes every check, and why those before it did not."""
    ways = [params.exporter]
    if params.exporter == "auto":
        ways = ["dynamo", "torchscript"] if params.opset >= _LOWEST_DYNAMO else ["torchscript", "dynamo"]
    refused: dict[str, StageError] = {}
    for place, way in enumerate(ways):
        try:
            ctx.progress((place + 0.1) / len(ways), f"exporting with {way}")
            made = _Attempt(ctx, bundle, params, seen, way, done=(place + 0.8) / len(ways))
            _traced_or_scripted(made) if way == "torchscript" else made.by(bundle.exportable())
        except StageError as error:
            for line in (f"{way}: {error}", *refusals.whole(error.__cause__)):
                ctx.log(line)
            refused[way] = type(error)(error.message, fix=error.fix)  # Its traceback would hold the model.
        else:
            return way, refused
    raise _all_refused(refused)


def _all_refused(refused: dict[str, StageError]) -> StageError:
    """Return one error for all exporters: it advises none that was tried."""
    first = next(iter(refused.values()))
    if len(refused) == 1:
        other = "torchscript" if "dynamo" in refused else "dynamo"
        fix = "; ".join(filter(None, (first.fix, f"or exporter: {other}")))
        return type(first)(first.message, fix=fix)
    kind = GateError if any(isinstance(error, GateError) for error in refused.values()) else StageError
    messages = dict.fromkeys(error.message for error in refused.values())
    if len(messages) == 1:
        return kind(first.message, fix=first.fix)
    said = "; ".join(f"{way}: {error.message}" for way, error in refused.items())
    fixes = (error.fix for error in refused.values() if error.fix)
    fix = next((fix for fix in fixes if not any(f"exporter: {way}" in fix for way in refused)), "")
    return kind(f"neither exporter produces a correct file: {said}", fix=fix)


def _made_by(ctx: Context, way: str) -> Path:
    return ctx.workdir / f"{way}-made"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An export in one way, `done` of the stage's progress being made when it is compared."""

    ctx: Context
    bundle: Bundle
    params: OnnxExport.Params
    seen: _Seen
    way: str
    done: float

    def by(self, module: Any) -> None:
        """Export a module, which loses its weights, and raise StageError unless the file is right."""
        self._export(module)
        self._check()

    def _export(self, module: Any) -> None:
        """Put the cleaned file with the user's names into its folder."""
        raw, made = self.ctx.workdir / self.way, _made_by(self.ctx, self.way)
        for folder in (raw, made):
            shutil.rmtree(folder, ignore_errors=True)
        raw.mkdir()
        opset = self.params.opset
        _export_with(self.way, self.bundle, module, opset, raw / protos.FILE_NAME)
        model = protos.load_proto(raw, weights=False)
        delivered = protos.opset_of(model)
        if delivered != opset:
            raise StageError(f"the {self.way} exporter produced opset {delivered}, not {opset}",
                             fix=f"set `opset: {delivered}`")  # fmt: skip
        naming.rename(model, self.bundle.input_names, self.bundle.output_names)
        moving.move_proto(model, raw, made)
        shutil.rmtree(raw)

    def _check(self) -> None:
        """Read the file back, run it, and compare it with eager on every case and branch."""
        bundle, params, folder = self.bundle, self.params, _made_by(self.ctx, self.way)
        lean = protos.size_bytes(folder) > protos.SINGLE_FILE_BYTES
        opened = protos.session(folder, threads=self.ctx.threads, lean=lean)
        _check_axes(bundle, opened)
        run = protos.running(opened)
        try:
            parity = compare(self._told(), run, atol=params.atol, rtol=params.rtol)
        except GateError:
            raise
        except StageError as error:
            shapes = ", ".join(f"{n} {tuple(a.shape)}" for n, a in bundle.cases[0].inputs.items())
            axes = f", although {', '.join(bundle.axes)} may vary" if bundle.axes else ""
            said = f"the {self.way} exporter produced a model for {shapes} only{axes}: {error.message}"
            raise StageError(said, fix=_SIZES if bundle.axes else "") from error
        gate(self.ctx, parity, atol=params.atol, rtol=params.rtol, fix=_ROUNDING)
        branches.check(self.seen.branches, run)
        if self.seen.far is not None:
            _check_far(self.seen.far, run, params, self.way)

    def _told(self) -> Iterator[Case]:
        """Yield the cases, and report which one is compared."""
        cases = self.bundle.cases
        for number, case in enumerate(cases, 1):
            said = f"comparing what {self.way} made: case {number} of {len(cases)}, {case.name}"
            self.ctx.progress(self.done, said)
            yield case


def _check_far(far: Case, run: Model, params: OnnxExport.Params, way: str) -> None:
    """Compare at sizes that are far from those of the cases."""
    try:
        parity = compare([far], run, atol=params.atol, rtol=params.rtol)
        said = parity.beyond(params.atol, params.rtol) if parity.excess > 0 else ""
    except StageError as error:
        said = error.message
    if said:
        raise GateError(f"the {way} exporter wrote down sizes of the reference cases: at {far.name} the "
                        f"result differs from the original: {said}",
                        fix="set the `max` of the axis in `dynamic`, or leave it out")  # fmt: skip


def _export_with(way: str, bundle: Bundle, module: Any, opset: int, file: Path) -> None:
    import torch

    if any(tensor.dtype == torch.bfloat16 for tensor in (*module.parameters(), *module.buffers())):
        module = module.float()  # onnxruntime has few kernels of bfloat16; its values are float32's exactly.
    options: dict[str, Any] = {
        "input_names": naming.neutral("input", len(bundle.inputs)),
        "output_names": naming.neutral("output", len(bundle.outputs)),
        "opset_version": opset,
        "verbose": False,
        "dynamo": way == "dynamo",
    }
    if way == "dynamo":
        options["dynamic_shapes"] = _dynamic_shapes(bundle, module)
        options["external_data"] = True  # Written from the tensors themselves, without a copy in a message.
    else:
        ports = (*bundle.inputs, *bundle.outputs)
        names = (*options["input_names"], *options["output_names"])
        options["dynamic_axes"] = {n: dict(p.dynamic) for n, p in zip(names, ports, strict=True) if p.dynamic}
    pooling = exact_pooling() if way == "dynamo" else contextlib.nullcontext()
    try:  # The fused encoder layer has no ONNX equivalent.
        with unfused(), warnings.catch_warnings(), torch.no_grad(), pooling:
            warnings.simplefilter("ignore")
            torch.onnx.export(module, bundle.example(), str(file), **options)
    except Exception as error:
        if isinstance(missing := error.__cause__ or error, ModuleNotFoundError):
            raise missing from None  # The runner says which extra brings it.
        raise refusals.refusal(way, error, bundle) from error
    finally:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = torch.empty(0)  # The exporters' caches keep the module, not its weights.


def _dynamic_shapes(bundle: Bundle, module: Any) -> dict[str, Any] | tuple[Any, ...] | None:
    if not any(port.dynamic for port in bundle.inputs):
        return None
    shapes = {port.name: dict(port.dynamic) for port in bundle.inputs}
    known = inspect.signature(module.forward).parameters
    return shapes if all(name in known for name in shapes) else tuple(shapes.values())


def _traced_or_scripted(made: _Attempt) -> None:
    """Export a trace, or the model as TorchScript where a trace would keep one branch of it only."""
    bundle, found = made.bundle, made.seen.branches
    program = _scripted(bundle, found) if found.reads else None
    try:
        made.by(program or bundle.module())
    except StageError:
        program = None if found.reads else _scripted(bundle, found)
        if program is None:
            raise
        made.by(program)


def _scripted(bundle: Bundle, found: Branches) -> Any:
    """Return the model as TorchScript if what it does depends on its inputs, else None."""
    import torch

    from ..torch.trace import DependsOnInputs, trace

    if bundle.is_script:
        return None
    try:
        trace(bundle, found)
    except DependsOnInputs as error:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.jit.script(bundle.module())
            except Exception as refusal:
                raise error from refusal
    except StageError:
        pass
    return None


def _check_axes(bundle: Bundle, opened: Any) -> None:
    """Compare the names and dynamic axes that the runtime reads in the file with what was asked for."""
    outputs = [value.name for value in opened.get_outputs()]
    shapes = {value.name: value.shape for value in opened.get_inputs()}
    for kind, ports, names in (("input", bundle.inputs, list(shapes)), ("output", bundle.outputs, outputs)):
        for port in ports:
            if port.name not in names:
                raise StageError(f"the ONNX file has no {kind} {port.name!r}, only {', '.join(names)}")
    for port in bundle.inputs:
        for axis, label in port.dynamic.items():
            if not isinstance(shapes[port.name][axis], str):
                raise StageError(f"axis {axis} ({label}) of the input {port.name!r} is fixed in the file",
                                 fix="check whether forward() fixes that size")  # fmt: skip
