"""`select`: the best of several converted models under a limit on the accuracy they lose."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

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

from .model import bundles, plot, protos
from .verify import runtime
from .verify.latency import choose_case
from .verify.timing import measure


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One row of the table; `latency_us` is the median, measured beside all others.

    `pareto`: no other candidate is at least as good in both accuracy and the objective, and better in one.
    """

    name: str
    accuracy: float
    drop: float
    bytes: int
    latency_us: float
    refused: str
    pareto: bool = False


class Select(Stage):
    """Choose the candidate with the smallest latency whose loss of accuracy is within the limit.

    All candidates are measured in turn, in this one process. Only those that lose at most
    `max_drop` points against the best accuracy of the baseline can be chosen.
    """

    uses = "select"
    packages = ("onnxruntime", "torch", "numpy", "matplotlib")
    preload = ("onnxruntime", "torch", "safetensors.torch")
    facets = ("arch", "isa")
    extra = "onnx"

    class Params(StageParams):
        """What counts."""

        objective: Literal["latency", "size"] = Field("latency", description="what to minimise")
        max_drop: float = Field(0.5, ge=0, description="largest loss of accuracy, in points")
        rounds: int = Field(200, ge=5, description="how often each model is run")

    class Inputs(StageInputs):
        """The candidates with their reports, by the same names."""

        candidates: dict[str, File | Folder] = Field(description="the models, by name")
        accuracy: dict[str, File] = Field(description="their verify.accuracy reports, by name")
        reference: Folder = Field(description="the bundle of model.prepare")

    class Outputs(StageOutputs):
        """The chosen model."""

        model: Folder = Output("model", "a copy of the chosen model")
        choice: File = Output("choice.json", "the choice, and why the others were rejected")
        plot: File = Output("pareto.svg", "loss of accuracy over latency or size, and the choice")

    def run(self, ctx: Context, params: Params, inputs: Inputs, outputs: Outputs) -> None:
        """Measure, refuse, choose, copy."""
        rows = _marked(_table(ctx, params, inputs), params)
        fitting = [row for row in rows if not row.refused]
        ctx.figure("objective", params.objective)
        ctx.figure("max_drop", params.max_drop)
        ctx.figure("candidates", {row.name: asdict(row) for row in rows})
        if not fitting:
            _draw(outputs.plot, rows, "", params)
            reasons = "; ".join(f"{row.name} {row.refused}" for row in rows)
            raise GateError(f"no candidate meets the limits: {reasons}",
                            fix="change the limit that is exceeded, or add candidates")  # fmt: skip
        best = min(fitting, key=lambda row: row.latency_us if params.objective == "latency" else row.bytes)
        ctx.figure("chosen", best.name)
        _copy(inputs.candidates[best.name], outputs.model)
        kept = ("accuracy", "drop", "bytes", "refused")
        table = {row.name: {k: v for k, v in asdict(row).items() if k in kept} for row in rows}
        choice = {"chosen": best.name, "objective": params.objective, "candidates": table}
        _draw(outputs.plot, rows, best.name, params)
        outputs.choice.write_text(json.dumps(choice, indent=2, sort_keys=True) + "\n", "utf-8")


def _marked(rows: list[_Candidate], params: Select.Params) -> list[_Candidate]:
    """Return the rows with those on the Pareto front marked."""
    front = {point.name for point in plot.front(_points(rows, params))}
    return [replace(row, pareto=row.name in front) for row in rows]


def _points(rows: list[_Candidate], params: Select.Params) -> list[plot.Point]:
    latency = params.objective == "latency"
    return [
        plot.Point(row.name, row.latency_us if latency else row.bytes / 1e6, row.drop, bool(row.refused))
        for row in rows
    ]


def _draw(path: Path, rows: list[_Candidate], chosen: str, params: Select.Params) -> None:
    """Plot what was gained against what was lost."""
    axis = "median latency (µs)" if params.objective == "latency" else "size (MB)"
    plot.pareto(
        path, _points(rows, params), chosen, x=axis, y="loss of accuracy (points)", limit=params.max_drop
    )


def _table(ctx: Context, params: Select.Params, inputs: Select.Inputs) -> list[_Candidate]:
    bundle = bundles.load_bundle(inputs.reference)
    models = {name: runtime.open_model(ctx, path, bundle) for name, path in inputs.candidates.items()}
    times = measure(models, choose_case(bundle, None).inputs, params.rounds)
    rows = []
    for name, path in inputs.candidates.items():
        accuracy, drop = _read_report(name, inputs.accuracy)
        refused = f"loses {drop:.2f} points" if drop > params.max_drop else ""
        size = protos.size_bytes(path)
        rows.append(_Candidate(name, accuracy, drop, size, round(times[name][0], 1), refused))
    return rows


def _read_report(name: str, reports: dict[str, Path]) -> tuple[float, float]:
    if name not in reports:
        raise StageError(f"the candidate {name!r} has no accuracy report, only {', '.join(reports)}",
                         fix="use the same names in `candidates` and `accuracy`")  # fmt: skip
    try:
        report = json.loads(reports[name].read_text("utf-8"))
    except ValueError:
        report = None
    if not isinstance(report, dict) or not isinstance(report.get("accuracy"), float | int):
        raise StageError(f"the input {name!r} of `accuracy` is not an accuracy report",
                         fix="use the output `report` of verify.accuracy")  # fmt: skip
    if report.get("drop") is None:
        raise StageError(f"the accuracy report of {name!r} was made without a reference",
                         fix="set the input `reference` of verify.accuracy")  # fmt: skip
    return float(report["accuracy"]), float(report["drop"])


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        return
    target.mkdir(exist_ok=True)
    shutil.copyfile(source, target / f"model{source.suffix}")
