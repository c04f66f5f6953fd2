"""Every kind of model in every format: converted and close to eager, or refused in these words.

`make formats` writes what this measures to docs/formats.md.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, Project
from tests.models import models
from tests.models.make import EXAMPLES, batch, weights
from tests.pipeline.test_stages_torch import line_of, stage

PAGE = ROOT / "docs/formats.md"

HEAD = """\
# What converts

Written by `make formats`, which makes every kind of model in every format, loads it back by its own runtime and
compares it with eager at several batch sizes (and lengths, where they may vary). The models are small ones of
`tests/models`, trained from a fixed seed; figures are of one machine. *Difference* is the largest absolute one,
*cosine* the smallest of any sample; *time* is the median latency of the smallest case as a ratio to eager's, both in
one run on one thread. What is refused is refused in the words of the table.

Sizes are in KB. These models are so small that a format's own overhead outweighs int8; see the README's example for
what it gains on weights.
"""


class Format(NamedTuple):
    """How a format is made: a stage type with parameters, from the model or from another format."""

    title: str
    uses: str
    params: Mapping[str, Any] = MappingProxyType({})
    source: str = ""
    quantized: bool = False


FORMATS = {
    "full": Format("`torch.save_full`", "torch.save_full"),
    "trace": Format("`torch.trace`", "torch.trace"),
    "frozen": Format("`torch.trace`, frozen", "torch.trace", {"freeze": True}),
    "script": Format("`torch.script`", "torch.script"),
    "pt2": Format("`torch.export`", "torch.export"),
    "onnx": Format("`onnx.export`", "onnx.export"),
    "onnx-dynamo": Format("`onnx.export`, dynamo", "onnx.export", {"exporter": "dynamo"}),
    "onnx-legacy": Format("`onnx.export`, torchscript, opset 17", "onnx.export", {"exporter": "torchscript", "opset": 17}),
    "optimized": Format("`onnx.optimize`", "onnx.optimize", source="onnx"),
    "fp16": Format("`onnx.float16`", "onnx.float16", source="onnx", quantized=True),
    "onnx-dynamic": Format("`onnx.quantize_dynamic`", "onnx.quantize_dynamic", source="onnx", quantized=True),
    "onnx-static": Format("`onnx.quantize_static`", "onnx.quantize_static", source="onnx", quantized=True),
    "torch-dynamic": Format("`torch.quantize_dynamic`", "torch.quantize_dynamic", quantized=True),
    "torch-static": Format("`torch.quantize_static`", "torch.quantize_static", quantized=True),
    "ptl": Format("`mobile.lite`", "mobile.lite"),
    "pte": Format("`mobile.executorch`", "mobile.executorch"),
    "pte-int8": Format("`mobile.executorch`, int8", "mobile.executorch", {"quantize": "int8"}, quantized=True),
}  # fmt: skip

_DATA = f"control flow depends on its data at {line_of('if x.sum')}"
_CUSTOM = f"the operator shop(::|.)odd has no ONNX equivalent at {line_of('torch.ops.shop.odd(self')}"

REFUSED = {
    **{("branch", name): _DATA for name in ("trace", "frozen", "pt2", "onnx-dynamo", "ptl", "pte", "pte-int8")},
    ("branch", "torch-static"): f"the operator aten::sum.IntList_out has no int8 form in torch at {line_of('if x.sum')}",
    **{("custom", name): _CUSTOM for name in ("onnx", "onnx-dynamo", "onnx-legacy")},
    **{("custom", name): "skipped: it needs onnx" for name in ("optimized", "fp16", "onnx-dynamic", "onnx-static")},
    **{("custom", name): "the operator shop::odd has no kernel in ExecuTorch" for name in ("pte", "pte-int8")},
    ("custom", "torch-static"): "the quantized model can't run: .*leave the modules around it out",
    **{("memory", name): "the model fixes the dynamic axis 'length'" for name in ("pt2", "pte", "pte-int8")},
    ("text", "onnx-legacy"): r"the torchscript exporter made a model that takes tokens \(2, 5\) only",
    ("two", "torch-static"): f"the operator aten::add.out has no int8 form in torch at {line_of('left + right')}",
}  # fmt: skip
"""What each of these combinations says: everything else converts."""


MADE = ("ran", "hit")
"""What gives the same bytes as another format is a hit where it is measured."""


def pipeline(model: str, *, measured: bool = True) -> dict[str, Any]:
    """Return the pipeline that makes every format of a model, and measures each."""
    bundle = "${{ stages.model.outputs.model }}"
    samples = {"samples": "samples.npz"} if model in ("cnn", "mlp") else {}
    stages: dict[str, Any] = {
        "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": "model.pt"}},
        "model": {
            "uses": "model.prepare",
            "inputs": {"weights": "${{ stages.weights.outputs.weights }}", **samples},
            "with": {"factory": f"models.py:{model}", **EXAMPLES[model]},
        },
    }
    for name, form in FORMATS.items():
        made = "${{ stages.%s.outputs.model }}"
        inputs = {"model": made % form.source if form.source else bundle}
        fields = stage(form.uses).Inputs.model_fields
        if "reference" in fields:
            inputs["reference"] = bundle
        if "calibration" in fields and form.quantized:
            inputs["calibration"] = "samples.npz"
        stages[name] = {"uses": form.uses, "inputs": inputs, "with": dict(form.params)}
        if measured and name != "full":  # It is eager itself.
            pair = {"candidate": made % name, "reference": bundle}
            stages[f"{name}-time"] = {"uses": "verify.latency", "inputs": pair, "with": {"rounds": 50}}
    return {"version": 1, "name": model, "stages": stages}


def project_of(model: str, folder: Path, stages: dict[str, Any]) -> Project:
    """Write a project with a trained model and samples of its task."""
    project = Project(folder)
    project.write("models.py", (ROOT / "tests/models/models.py").read_text())
    project.write("pipeline.yaml", json.dumps(stages))
    torch.save(weights(model), project.folder / "model.pt")
    inputs, _ = batch(model, torch.Generator().manual_seed(3))
    names = inspect.signature(getattr(models, model)().forward).parameters
    arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    np.savez(project.folder / "samples.npz", **arrays)
    return project


@functools.cache
def run(model: str, folder: Path) -> dict[str, Any]:
    """Run a model's pipeline by the real command line; return its stages as the run recorded them."""
    project = project_of(model, folder / model, pipeline(model))
    project.cli("run", exits=None)
    (record,) = (project.folder / ".deploy-runner/runs").glob("*/record.json")
    return json.loads(record.read_text())["stages"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.mark.slow
@pytest.mark.parametrize("model", EXAMPLES)
def test_every_format_agrees_with_eager_or_is_refused_as_documented(folder: Path, model: str) -> None:
    stages = run(model, folder)
    for name, form in FORMATS.items():
        found, expected = stages[name], REFUSED.get((model, name))
        if expected is not None:
            said = found.get("error") or f"skipped: {found.get('reason')}"
            assert re.search(expected, said), f"{model}, {name}: {said}"
            continue
        assert found["state"] in MADE, f"{model}, {name}: {found.get('error') or found.get('reason')}"
        if "cosine" in found["figures"]:
            assert found["figures"]["cosine"] > (0.98 if form.quantized else 0.999999), f"{model}, {name}"
        if name != "full":
            assert stages[f"{name}-time"]["state"] in MADE, stages[f"{name}-time"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "text", "memory"])
def test_every_format_has_the_same_bytes_elsewhere(tmp_path: Path, model: str) -> None:
    stages = pipeline(model, measured=False)
    model_stage = {"model": "${{ stages.onnx.outputs.model }}", "calibration": "samples.npz"}
    stages["stages"]["sensitivity"] = {"uses": "onnx.sensitivity", "inputs": model_stage}
    found = []
    for name, environment, mask in (
        ("one", {"TZ": "UTC", "PYTHONHASHSEED": "1"}, 0o022),
        ("two and a half", {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2"}, 0o077),
    ):
        project = project_of(model, tmp_path / name, stages)
        before = os.umask(mask)
        try:
            project.cli("run", exits=None, **environment)
        finally:
            os.umask(before)
        (record,) = (project.folder / ".deploy-runner/runs").glob("*/record.json")
        made = json.loads(record.read_text())["stages"]
        found.append(
            {
                f"{s}.{o}": a["digest"]
                for s, row in made.items()
                for o, a in (row.get("artifacts") or {}).items()
            }
        )
    assert found[0] == found[1]
    assert len(found[0]) > 15


def _row(model: str, name: str, stages: dict[str, Any]) -> str:
    form, found = FORMATS[name], stages[name]
    if found["state"] not in MADE:
        said = found.get("error") or "its source is refused"
        return f"| {form.title} | refused: {said.replace('|', '/')} | | | | |"
    figures = found["figures"]
    ratio = stages[f"{name}-time"]["figures"]["latency_ratio"] if name != "full" else None
    size = found["artifacts"]["model"]["size"] / 1e3
    return (
        f"| {form.title} | converted | {_figure(figures.get('max_abs'), '.1e')} "
        f"| {_figure(figures.get('cosine'), '.6f')} | {size:.0f} | {_figure(ratio, '.2f')} |"
    )


def _figure(value: Any, form: str) -> str:
    return "" if value is None else "0" if value == 0 else format(value, form)


@pytest.mark.slow
def test_the_page_has_what_was_measured(folder: Path, request: pytest.FixtureRequest) -> None:
    lines = [HEAD]
    for model in EXAMPLES:
        lines.append(f"## {model}: {str(getattr(models, model.title()).__doc__).rstrip('.').lower()}\n")
        lines.append("| format | result | difference | cosine | KB | time |\n|---|---|---|---|---|---|")
        lines += [_row(model, name, run(model, folder)) for name in FORMATS]
        lines.append("")
    text = "\n".join(lines).rstrip("\n") + "\n"
    if request.config.getoption("--write-formats"):
        PAGE.write_text(text)
    assert _outcomes(PAGE.read_text()) == _outcomes(text), "make formats"


def _outcomes(text: str) -> list[str]:
    """Return which format of which model converts and what is said of the others, without figures."""
    return [" | ".join(line.split(" | ")[:2]) for line in text.splitlines() if line.startswith(("|", "##"))]
