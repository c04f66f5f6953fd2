"""`verify.parity`: does a converted model still compute what the original computed?"""

from __future__ import annotations

import json

from deploy_runner.sdk import (
    Context,
    Field,
    File,
    Folder,
    GateError,
    Output,
    Stage,
    StageInputs,
    StageOutputs,
)

from ..model import bundles, npz
from ..model.compare import Parity, compare
from . import runtime, samples

_NO_LIMIT = {"device"}


class VerifyParity(Stage):
    """Compare a converted model with the reference outputs, and fail beyond the limits.

    Without limits, float models may differ by what the rounding of each output's type explains;
    with `atol` or `rtol` by |a - b| ≤ atol + rtol·|b|. For int8 neither says much: limit the
    agreement of the largest output instead.
    """

    uses = "verify.parity"
    packages = ("onnxruntime", "torch", "numpy")
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(runtime.OnDevice):
        """The limits; where some are given, others are not checked."""

        atol: float | None = Field(None, ge=0, description="absolute tolerance")
        rtol: float | None = Field(None, ge=0, description="relative tolerance")
        min_argmax_agreement: float | None = Field(
            None, ge=0, le=1, description="smallest share of samples with the same largest output"
        )
        min_cosine: float | None = Field(None, ge=-1, le=1, description="smallest cosine similarity")
        max_abs: float | None = Field(None, ge=0, description="largest absolute difference")

    class Inputs(StageInputs):
        """The two models."""

        candidate: File | Folder = Field(
            description="the converted model: ONNX, TorchScript, .pt2, .ptl or .pte"
        )
        reference: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("parity.json", "the figures and the limits")
        worst: File = Output("worst.npz", "the worst sample: in/NAME, expected/NAME, actual/NAME")
        picture: File | None = Output("worst.png", "its input, if that is a picture; the report shows it")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Run every reference case, report, refuse."""
        bundle = bundles.load_bundle(inputs.reference)
        run = runtime.open_model(ctx, inputs.candidate, bundle, device=params.device)
        limits = _given(params)
        exact = {"atol": params.atol or 0.0, "rtol": params.rtol or 0.0} if limits else {}
        parity = compare(bundle.cases, run, **exact)
        for name, value in parity.figures().items():
            ctx.figure(name, value)
        report = {**parity.figures(), "worst": parity.worst, "limits": params.model_dump(exclude=_NO_LIMIT)}
        if not limits:
            report["allowed"] = parity.allowed
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        npz.write_arrays(outputs.worst, parity.worst_sample)
        _show(ctx, parity, outputs)
        refusals = _refusals(params, parity)
        if refusals:
            fix = f"`deploy-runner show {ctx.stage}` has every figure; int8 needs other limits than float"
            raise GateError(f"{ctx.stage}: {'; '.join(refusals)}; worst at {parity.worst}", fix=fix)


def _show(ctx: Context, parity: Parity, outputs: VerifyParity.Outputs) -> None:
    """Leave for the report which sample is the worst, and what it is recognised by."""
    if not parity.worst:
        return
    ctx.figure("worst", parity.worst)
    prefix = "in/"
    given = {n.removeprefix(prefix): a for n, a in parity.worst_sample.items() if n.startswith(prefix)}
    picture = samples.picture(given)
    if picture is not None and outputs.picture is not None:
        outputs.picture.write_bytes(picture)
    elif given:
        ctx.figure("worst_input", samples.values(given))


def _given(params: VerifyParity.Params) -> dict[str, float]:
    """Return the limits that are set."""
    return params.model_dump(exclude_none=True, exclude=_NO_LIMIT)


def _refusals(params: VerifyParity.Params, parity: Parity) -> list[str]:
    refusals = []
    given = _given(params)
    if parity.excess > 0 and (not given or given.keys() & {"atol", "rtol"}):
        refusals.append(f"the outputs differ by {parity.beyond(params.atol, params.rtol)}")
    if params.max_abs is not None and parity.max_abs > params.max_abs:
        refusals.append(f"the outputs differ by up to {parity.max_abs:.3g}, the limit is {params.max_abs:g}")
    if params.min_argmax_agreement is not None and parity.argmax_agreement < params.min_argmax_agreement:
        refusals.append(f"the largest output agrees on {parity.argmax_agreement:.2%} of the samples, "
                        f"less than {params.min_argmax_agreement:.2%}")  # fmt: skip
    if params.min_cosine is not None and parity.cosine < params.min_cosine:
        refusals.append(f"the cosine similarity falls to {parity.cosine:.6f}, below {params.min_cosine:g}")
    return refusals
