"""Write a model card from what the run has measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ._bundle import Bundle


def model_card(
    *,
    repo: str,
    license_name: str,
    language: str | None,
    tags: Sequence[str],
    files: Mapping[str, tuple[int, str]],
    reports: Mapping[str, Mapping[str, Any]],
    bundle: Bundle | None,
) -> str:
    """Return README.md. `files` maps a path to (bytes, SHA-256), `reports` names to JSON reports."""
    name = repo.rpartition("/")[2]
    results = _eval_results(reports)
    metadata: dict[str, Any] = {"license": license_name, "library_name": "onnx"}
    if language:
        metadata["language"] = language
    metadata["tags"] = sorted({"onnx", "deploy-runner", *tags})
    if results:
        task = {"task": {"type": "other"}, "dataset": {"name": "held-out samples", "type": "other"}}
        metadata["model-index"] = [{"name": name, "results": [{**task, "metrics": results}]}]
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {name}\n"]
    parts.append("Converted from a PyTorch checkpoint, each format compared with the original.\n")
    if results:
        parts.append(_results_table(reports))
    parts.append(_files_table(files))
    onnx = next((path for path in sorted(files) if path.endswith(".onnx")), None)
    if onnx is not None and bundle is not None:
        parts.append(_usage(repo, onnx, bundle))
    return "\n".join(parts)


def _eval_results(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "type": "accuracy",
            "name": f"accuracy ({name})",
            "value": round(report["accuracy"] / 100, 6),
        }
        for name, report in sorted(reports.items())
        if "accuracy" in report
    ]


def _results_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "## Measured\n",
        "| model | accuracy | loss in points | samples |",
        "|---|---:|---:|---:|",
    ]
    for name, report in sorted(reports.items()):
        if "accuracy" in report:
            drop = "" if report.get("drop") is None else f"{report['drop']:.2f}"
            lines.append(f"| {name} | {report['accuracy']:.2f} % | {drop} | {report.get('samples', '')} |")
    return "\n".join(lines) + "\n"


def _files_table(files: Mapping[str, tuple[int, str]]) -> str:
    lines = ["## Files\n", "| file | bytes | SHA-256 |", "|---|---:|---|"]
    lines += [f"| `{path}` | {size} | `{digest}` |" for path, (size, digest) in sorted(files.items())]
    return "\n".join(lines) + "\n"


def _usage(repo: str, onnx: str, bundle: Bundle) -> str:
    port = bundle.inputs[0]
    shape = tuple(1 if axis in port.dynamic else size for axis, size in enumerate(port.shape))
    feed = f'{{"{port.name}": np.zeros({shape}, dtype="{port.dtype}")}}'
    return f"""## Use

```python
import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download

session = onnxruntime.InferenceSession(hf_hub_download("{repo}", "{onnx}"))
outputs = session.run(None, {feed})
```
"""


def read_reports(paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Read JSON reports by name."""
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items()}
