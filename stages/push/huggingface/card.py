"""Write a model card from what the run has measured.

It is a function of what was made, of nothing else: no time, no run, no machine. So a second run writes the
same card, and there is nothing to commit. Format: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy_runner.sdk import StageError

from ....server import aot
from . import metadata
from .card_usage import usage
from .content import Wanted
from .facts import Facts

Reports = Mapping[str, Mapping[str, Any]]
Lineage = Mapping[str, Mapping[str, Any]]

_FORMATS = {".safetensors": "safetensors", ".onnx": "ONNX", ".pt": "TorchScript", ".pt2": "torch.export",
            ".pte": "ExecuTorch", ".ptl": "PyTorch Mobile", ".gz": "archive", ".json": "JSON"}  # fmt: skip
_PRECISIONS = ("fp16", "int8", "uint8", "quantized", "q4f16", "q4", "bnb4")


def text(facts: Facts) -> str:
    """Return README.md."""
    name = facts.repo.rpartition("/")[2]
    head = yaml.safe_dump(_metadata(facts, name), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---\n",
        f"# {name}\n",
        "Converted from a PyTorch checkpoint, each format compared with the original.\n",
        *_accuracy_table(facts.reports), *_parity_table(facts.reports), *_files_table(facts),
        *usage(facts), *_provenance(facts),
    ]  # fmt: skip
    return "\n".join(parts)


def _metadata(facts: Facts, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"license": facts.license}
    if facts.language:
        found["language"] = facts.language
    if library := metadata.library(facts.config, facts.files):
        found["library_name"] = library
    task = facts.task
    if task:
        found["pipeline_tag"] = task
    found["tags"] = sorted({*metadata.tags(facts.config, facts.files, mixin=facts.mixin), *facts.tags})
    if facts.examples:
        found["widget"] = metadata.widget(facts.examples, task, facts.files)
    if results := metadata.model_index(facts.reports):
        place = {"task": {"type": task or "other"}, "dataset": {"name": facts.dataset, "type": "other"}}
        found["model-index"] = [{"name": name, "results": [{**place, "metrics": results}]}]
    return found


def _files_table(facts: Facts) -> list[str]:
    lines = ["## Files\n", "| format | file | bytes | made by | SHA-256 |", "|---|---|---:|---|---|"]
    lines += [
        f"| {_format_of(path, file)} | `{path}` | {file.size} | {facts.makers.get(path, '')} "
        f"| `{file.sha256}` |"
        for path, file in sorted(facts.files.items())
    ]
    return ["\n".join(lines) + "\n"]


def _provenance(facts: Facts) -> list[str]:
    sources = _sources(facts.lineage)
    if not sources:
        return []
    lines = ["## Made from\n", "| file | read by | SHA-256 |", "|---|---|---|"]
    lines += [f"| `{path}` | {stage} | `{digest}` |" for (path, digest), stage in sorted(sources.items())]
    said = "The commit message contains the id of the run and the commit of the source code."
    return ["\n".join(lines) + "\n", f"{said}\n"]


def _format_of(path: str, file: Wanted) -> str:
    """Return a file's format; of both kinds of .pt2 which it is."""
    return "AOTInductor" if Path(path).suffix == ".pt2" and aot.is_aot(file.path) else file_format(path)


def file_format(path: str) -> str:
    """Return the format of a file by its name, with the precision that the name says."""
    suffix = Path(path).suffix
    if suffix == ".onnx_data":
        return "ONNX weights"
    found = _FORMATS.get(suffix, suffix.removeprefix(".") or "file")
    precision = next((p for p in _PRECISIONS if Path(path).stem.endswith(f"_{p}")), "")
    return f"{found} {precision}".strip()


def read_reports(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Read JSON reports by name. Raises StageError for one that isn't an object."""
    reports = {}
    for name, path in paths.items():
        try:
            reports[name] = dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError):
            raise StageError(f"the report {name!r} is not a JSON object",
                             fix="use the output `report` of a verify stage") from None  # fmt: skip
    return reports


def _accuracy_table(reports: Reports) -> list[str]:
    rows = [
        f"| {name} | {report['accuracy']:.2f} % | {_points(report.get('drop'))} "
        f"| {report.get('samples', '')} |"
        for name, report in sorted(reports.items())
        if "accuracy" in report
    ]
    head = ["## Accuracy\n", "| model | accuracy | loss in points | samples |", "|---|---:|---:|---:|"]
    return ["\n".join([*head, *rows]) + "\n"] if rows else []


def _points(drop: float | None) -> str:
    return "" if drop is None else f"{drop:.2f}"


def _parity_table(reports: Reports) -> list[str]:
    rows = [
        f"| {name} | {report['max_abs']:.3g} | {report['cosine']:.6f} | {report['argmax_agreement']:.2%} "
        f"| {report.get('samples', '')} |"
        for name, report in sorted(reports.items())
        if "argmax_agreement" in report
    ]
    head = [
        "## Compared with the original\n",
        "| model | largest difference | cosine similarity | same largest output | samples |",
        "|---|---:|---:|---:|---:|",
    ]
    return ["\n".join([*head, *rows]) + "\n"] if rows else []


def _sources(lineage: Lineage) -> dict[tuple[str, str], str]:
    """Return (path, SHA-256) → the stages that read it, of every file of the project."""
    found: dict[tuple[str, str], list[str]] = {}
    for id_, stage in lineage.items():
        for name, path in stage["sources"].items():
            found.setdefault((path, stage["inputs"][name][0]), []).append(id_)
        for path, digest in stage.get("code", {}).items():
            found.setdefault((path, digest), []).append(id_)
    return {key: ", ".join(sorted(set(stages))) for key, stages in found.items()}
