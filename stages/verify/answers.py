"""`verify.answers`: does a converted model answer raw input as the original does?"""

from __future__ import annotations

import json
from pathlib import Path
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

from ..model import bundles, opened_io
from ..model.calibration import slots_of_bundle
from . import raw_answers, raw_data, runtime

_MOST_LISTED = 50


class VerifyAnswers(Stage):
    """Answer raw input with a converted model and with the original, and fail if too many answers differ.

    Answers agree if their predictions are the same; embeddings, boxes and the like agree if every
    number is within the tolerance. No labels are needed, so any pictures, sentences or rows can be
    used.
    """

    uses = "verify.answers"
    packages = ("onnx", "onnxruntime", "torch", "numpy", "pillow", "tokenizers", "soundfile", "soxr")
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "io"

    class Params(runtime.OnDevice):
        """The limits."""

        min_agreement: float = Field(
            100, ge=0, le=100, description="how many of the answers must agree, in percent"
        )
        max_score_difference: float | None = Field(
            None, ge=0, le=1, description="largest difference of a class's scores"
        )
        tolerance: float = Field(
            0.01, ge=0, description="largest difference of an answer's numbers, as a share of the larger"
        )

    class Inputs(StageInputs):
        """The models, and raw input."""

        candidate: File | Folder = Field(
            description="the model: ONNX, TorchScript, .pt2, .ptl, .pte or a bundle"
        )
        reference: Folder = Field(description="the bundle that it was created from")
        io: Folder = Field(description="the output of model.io")
        data: File | Folder = Field(description="raw input: a folder of files, a .csv, .tsv or .jsonl")

    class Outputs(StageOutputs):
        """The report."""

        report: File = Output("answers.json", "the share that agrees, and the answers that don't")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Answer twice, report, refuse."""
        bundle = bundles.load_bundle(inputs.reference)
        io = opened_io.open_io(inputs.io)
        slots, axes = slots_of_bundle(bundle), raw_answers.axes_of(bundle)
        models = [
            runtime.open_model(ctx, path, bundle, device=params.device)
            for path in (Path(bundle.folder), inputs.candidate)
        ]
        original, candidate = (raw_answers.answering(run, io, slots, axes) for run in models)
        count, largest, others = 0, 0.0, []
        for sample in raw_data.samples(inputs.data, io, raw_data.LABEL):
            given = raw_answers.read(io, sample)
            theirs, ours = original(given), candidate(given)
            count += 1
            largest = max(largest, raw_answers.score_difference(theirs, ours))
            if not raw_answers.agree(theirs, ours, params.tolerance):
                others.append({"sample": sample.place, "reference": theirs, "candidate": ours})
        if not count:
            raise StageError("the data has no samples", fix="check the path of `data`")
        report: dict[str, Any] = {
            "samples": count, "agreement": round(100 * (1 - len(others) / count), 9),
            "max_score_difference": largest,
        }  # fmt: skip
        for name, value in report.items():
            ctx.figure(name, value)
        text = json.dumps({**report, "disagreements": others[:_MOST_LISTED]}, indent=2, sort_keys=True)
        outputs.report.write_text(text + "\n", "utf-8")
        _refuse(ctx.stage, params, report, others)


def _refuse(
    stage: str, params: VerifyAnswers.Params, report: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    if report["agreement"] < params.min_agreement:
        first = others[0]
        raise GateError(
            f"{stage}: {report['agreement']:.2f} % of {report['samples']} answers agree with the original's, "
            f"below {params.min_agreement:g} %; the first that doesn't is {first['sample']}: "
            f"{_told(first['candidate'])} for {_told(first['reference'])}"
        )
    if (
        params.max_score_difference is not None
        and report["max_score_difference"] > params.max_score_difference
    ):
        raise GateError(
            f"{stage}: a score is {report['max_score_difference']:.3g} off the original's, "
            f"above {params.max_score_difference:g}"
        )


def _told(answer: Any) -> str:
    found = answer.get("prediction", answer) if isinstance(answer, dict) else answer
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:59]}…"
