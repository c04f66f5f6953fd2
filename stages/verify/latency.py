"""`verify.latency`: is a converted model as fast as it should be?"""

from __future__ import annotations

import json
from typing import Any

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
)

from ..model import bundles
from . import runtime
from .timing import measure

_FIX = "measure on an idle machine, with more `rounds`"


class VerifyLatency(Stage):
    """Measure a model's latency as a ratio to the original's, in one run.

    The absolute times depend on the machine and are in the figures. The limits apply to the ratios
    of the medians and of the 95th percentiles.
    """

    uses = "verify.latency"
    packages = ("onnxruntime", "torch", "numpy")
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(runtime.OnDevice):
        """How to measure, and the limit."""

        max_ratio: float | None = Field(
            None, gt=0, description="largest median, as a share of the reference's"
        )
        max_p95_ratio: float | None = Field(
            None, gt=0, description="largest 95th percentile, as a share of the reference's"
        )
        rounds: int = Field(200, ge=5, description="how often each model is run")
        case: str | None = Field(None, description="the reference case to run (default: the smallest)")

    class Inputs(StageInputs):
        """The two models."""

        candidate: File | Folder = Field(description="the converted model")
        reference: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("latency.json", "medians, 95th percentiles (µs) and their ratio")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Warm up, measure interleaved, refuse."""
        bundle = bundles.load_bundle(inputs.reference)
        arrays = choose_case(bundle, params.case).inputs
        models = {
            "candidate": runtime.open_model(ctx, inputs.candidate, bundle, device=params.device),
            "reference": runtime.open_model(ctx, inputs.reference, bundle, device=params.device),
        }
        found = measure(models, arrays, params.rounds)
        pairs = zip(found["candidate"], found["reference"], strict=True)
        ratio, p95_ratio = (own / others for own, others in pairs)
        report: dict[str, Any] = {
            "ratio": round(ratio, 4),
            "p95_ratio": round(p95_ratio, 4),
            "threads": ctx.threads,
            "median_us": {name: round(median, 1) for name, (median, _) in found.items()},
            "p95_us": {name: round(p95, 1) for name, (_, p95) in found.items()},
        }
        ctx.figure("latency_ratio", report["ratio"])
        ctx.figure("p95_ratio", report["p95_ratio"])
        ctx.figure("median_us", report["median_us"])
        ctx.figure("p95_us", report["p95_us"])
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        if params.max_ratio is not None and ratio > params.max_ratio:
            raise GateError(f"{ctx.stage}: the median latency is {ratio:.2f} times the original's, "
                            f"the limit is {params.max_ratio:g}", fix=_FIX)  # fmt: skip
        if params.max_p95_ratio is not None and p95_ratio > params.max_p95_ratio:
            raise GateError(f"{ctx.stage}: the 95th percentile of the latency is {p95_ratio:.2f} times the "
                            f"original's, the limit is {params.max_p95_ratio:g}", fix=_FIX)  # fmt: skip


def choose_case(bundle: bundles.Bundle, name: str | None) -> bundles.Case:
    """Return a bundle's case by name, or its smallest. Raises StageError for an unknown name."""
    if name is None:
        return min(bundle.cases, key=lambda case: sum(a.size for a in case.inputs.values()))
    found = next((case for case in bundle.cases if case.name == name), None)
    if found is None:
        known = ", ".join(case.name for case in bundle.cases)
        raise StageError(f"the bundle has no case {name!r}, only {known}")
    return found
