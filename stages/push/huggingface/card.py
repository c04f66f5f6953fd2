"""Write a model card from what the run has measured.

It is a function of what was made, of nothing else: no time, no run, no machine. So a second run writes the
same card, and there is nothing to commit. Format: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deploy_runner.sdk import StageError

from ....server import aot
from ...model.bundles import Bundle
from . import metadata, pretrained, raw_io
from .card_usage import usage
from .content import Wanted

Reports = Mapping[str, Mapping[str, Any]]
Lineage = Mapping[str, Mapping[str, Any]]

_FORMATS = {".safetensors": "safetensors", ".onnx": "ONNX", ".pt": "TorchScript", ".pt2": "torch.export",
            ".pte": "ExecuTorch", ".ptl": "PyTorch Mobile", ".gz": "archive", ".json": "JSON"}  # fmt: skip
_PRECISIONS = ("fp16", "int8", "uint8", "quantized", "q4f16", "q4", "bnb4")


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is made of. `revision` is what its snippets load, `lineage` what the run made before.

    `makers` names the stage that made each file, `io` is the io.json of what takes raw input, `config` the
    config.json.
    """

    repo: str
    files: Mapping[str, Wanted]
    reports: Reports
    makers: Mapping[str, str] = field(default_factory=dict)
    bundle: Bundle | None = None
    lineage: Lineage = field(default_factory=dict)
    license: str = "other"
    language: str | None = None
    tags: Sequence[str] = ()
    pipeline_tag: str | None = None
    dataset: str = "held-out samples"
    revision: str | None = None
    io: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[str] = ()

    def text(self) -> str:
        """Return README.md."""
        name = self.repo.rpartition("/")[2]
        head = yaml.safe_dump(self._metadata(name), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{head}---\n",
            f"# {name}\n",
            "Converted from a PyTorch checkpoint, each format compared with the original.\n",
            *_accuracy_table(self.reports), *_parity_table(self.reports), *self._files_table(),
            *usage(self), *self._provenance(),
        ]  # fmt: skip
        return "\n".join(parts)

    def _metadata(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"license": self.license}
        if self.language:
            found["language"] = self.language
        if library := metadata.library(self.config, self.files):
            found["library_name"] = library
        task = self.task
        if task:
            found["pipeline_tag"] = task
        found["tags"] = sorted({*metadata.tags(self.config, self.files, mixin=self._mixin), *self.tags})
        if self.examples:
            found["widget"] = metadata.widget(self.examples, task, self.files)
        if results := metadata.model_index(self.reports):
            place = {"task": {"type": task or "other"}, "dataset": {"name": self.dataset, "type": "other"}}
            found["model-index"] = [{"name": name, "results": [{**place, "metrics": results}]}]
        return found

    @property
    def task(self) -> str | None:
        """Return the Hub's task: what was said, else that of the raw input, else of the architecture."""
        kind = pretrained.kind_of(self.config)
        return self.pipeline_tag or raw_io.task(self.io) or (kind.task if kind else "") or None

    @property
    def _mixin(self) -> bool:
        return self.bundle is not None and self.bundle.hub_config is not None

    def _files_table(self) -> list[str]:
        lines = ["## Files\n", "| format | file | bytes | made by | SHA-256 |", "|---|---|---:|---|---|"]
        lines += [
            f"| {_format_of(path, file)} | `{path}` | {file.size} | {self.makers.get(path, '')} "
            f"| `{file.sha256}` |"
            for path, file in sorted(self.files.items())
        ]
        return ["\n".join(lines) + "\n"]

    def _provenance(self) -> list[str]:
        sources = _sources(self.lineage)
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
