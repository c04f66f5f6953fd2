"""`verify.size`: is a converted model as small as it should be?"""

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
    StageError,
    StageInputs,
    StageOutputs,
    StageParams,
)

from ..model.protos import size_bytes


class VerifySize(Stage):
    """Measure a model's size, and fail above the limits."""

    uses = "verify.size"

    class Params(StageParams):
        """The limits."""

        max_bytes: int | None = Field(None, ge=1, description="largest size in bytes")
        min_smaller: float | None = Field(None, gt=0, description="how many times smaller than the reference")

    class Inputs(StageInputs):
        """The models."""

        candidate: File | Folder = Field(description="the converted model")
        reference: File | Folder | None = Field(None, description="the model it was created from")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("size.json", "bytes, and how many times smaller")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Measure and refuse."""
        found = size_bytes(inputs.candidate)
        smaller = size_bytes(inputs.reference) / found if inputs.reference and found else None
        report = {"bytes": found, "smaller": round(smaller, 4) if smaller else None}
        ctx.figure("bytes", found)
        if smaller:
            ctx.figure("smaller", round(smaller, 4))
        outputs.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", "utf-8")
        if params.max_bytes is not None and found > params.max_bytes:
            raise GateError(f"{ctx.stage}: the model has {found} bytes, the limit is {params.max_bytes}",
                            fix="quantize it, or store it as float16")  # fmt: skip
        if params.min_smaller is not None:
            if smaller is None:
                raise StageError("min_smaller needs the input `reference`",
                                 fix="add the model that it is compared with")  # fmt: skip
            if smaller < params.min_smaller:
                raise GateError(f"{ctx.stage}: the model is {smaller:.2f} times smaller, "
                                f"at least {params.min_smaller:g} is required")  # fmt: skip
