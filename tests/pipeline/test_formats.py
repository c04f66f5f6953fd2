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

from deploy_runner.registry import Registry
from tests.bundles import line_of, stage
from tests.conftest import ROOT, Project
from tests.models import models
from tests.models.make import EXAMPLES, batch, weights

PAGE = ROOT / "docs/formats.md"

HEAD = """\
# What converts

Written by `make formats`, which converts every kind of model to every format, loads it with its own runtime and
compares it with eager at several batch sizes (and lengths, if they may vary). The models are the small ones in
`tests/models`, trained with a fixed seed; the figures are from one machine. *Difference* is the largest absolute one,
*cosine* the smallest of all samples; *time* is the median latency of the smallest case as a ratio to eager's, both in
one run on one thread. Where a conversion fails, the table quotes the error.

Sizes are in KB. These models are so small that a format's own overhead outweighs int8; see the README's example for
its effect on the size of weights.
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
    ("custom", "torch-static"): "the quantized model can't run: .*exclude the modules around it",
    **{("memory", name): "the model fixes the dynamic axis 'length'" for name in ("pt2", "pte", "pte-int8")},
    ("text", "onnx-legacy"): r"the torchscript exporter produced a model for tokens \(2, 5\) only",
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
    np.savez(project.folder / "samples.npz", allow_pickle=False, **arrays)
    return project


@functools.cache
def run(model: str, folder: Path) -> dict[str, Any]:
    """Run a model's pipeline by the real command line; return its stages as the run recorded them."""
    project = project_of(model, folder / model, pipeline(model))
    project.cli("run", exits=None)
    (record,) = (project.folder / ".deploy-runner/runs").glob("*/record.json")
    stages: dict[str, Any] = json.loads(record.read_text())["stages"]
    return stages


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


TIMED = ("verify.latency", "select")
"""Their outputs hold what was measured on a clock, and `package.sign`'s a signature: those differ by their nature."""


def everything(model: str) -> dict[str, Any]:
    """Return the pipeline of every stage type whose outputs depend on its inputs alone."""
    made = pipeline(model, measured=False)
    bundle, onnx = "${{ stages.model.outputs.model }}", "${{ stages.onnx.outputs.model }}"
    weights = "${{ stages.weights.outputs.%s }}"
    pair = {"candidate": onnx, "reference": bundle}
    accurate = {"data": "labelled.npz", **pair}
    made["stages"] |= {
        "sensitivity": {"uses": "onnx.sensitivity", "inputs": {"model": onnx, "calibration": "samples.npz"}},
        "checked": {"uses": "onnx.check", "inputs": {"model": onnx}},
        "parity": {"uses": "verify.parity", "inputs": pair},
        "accuracy": {"uses": "verify.accuracy", "inputs": accurate},
        "size": {"uses": "verify.size", "inputs": pair},
        "package": {"uses": "package.sagemaker", "inputs": {"model": onnx, "reference": bundle}},
        "resumable": {
            "uses": "checkpoint.create",
            "inputs": {"weights": weights % "weights", "metadata": weights % "metadata", "checkpoint": "training.pt"},
            "with": {"training_date": "2026-11-24"},
        },
        "resumes": {
            "uses": "checkpoint.resume_check",
            "inputs": {"checkpoint": "${{ stages.resumable.outputs.checkpoint }}", "data": "labelled.npz"},
            "with": {"factory": f"models.py:{model}", "optimizer": "SGD", "steps": 2},
        },
    }  # fmt: skip
    return made


def labelled(project: Project, model: str) -> None:
    """Write labelled data of a model's task, and a training checkpoint with its optimizer."""
    with np.load(project.folder / "samples.npz") as arrays:
        _, labels = batch(model, torch.Generator().manual_seed(3))
        np.savez(project.folder / "labelled.npz", y=labels.numpy(), **{name: arrays[name] for name in arrays})
    module = getattr(models, model)()
    module.load_state_dict(weights(model))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 1e-4)
    optimizer.step()
    state = {
        "model_state_dict": module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": 0.1,
    }
    torch.save(state, project.folder / "training.pt")


def artifacts(folder: Path, model: str, mask: int, **environment: str) -> dict[str, str]:
    """Run everything in a folder; return STAGE.OUTPUT → digest of all that was made."""
    project = project_of(model, folder, everything(model))
    labelled(project, model)
    before = os.umask(mask)
    try:
        project.cli("run", exits=None, **environment)
    finally:
        os.umask(before)
    (record,) = (project.folder / ".deploy-runner/runs").glob("*/record.json")
    stages = json.loads(record.read_text())["stages"]
    failed = {name: row["error"] for name, row in stages.items() if row.get("error")}
    assert set(failed) == {name for kind, name in REFUSED if kind == model}, failed
    return {
        f"{s}.{o}": a["digest"] for s, row in stages.items() for o, a in (row.get("artifacts") or {}).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "mlp", "text", "memory"])
def test_every_stage_gives_the_same_bytes_elsewhere(tmp_path: Path, model: str) -> None:
    one = artifacts(tmp_path / "one", model, 0o022, TZ="UTC", PYTHONHASHSEED="1")
    two = artifacts(
        tmp_path / "two and a half", model, 0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="2", LC_ALL="C"
    )
    assert one == two
    assert len(one) > 25


def test_no_stage_type_is_left_out_of_that(tmp_path: Path) -> None:
    tried = {row["uses"] for row in everything("cnn")["stages"].values()}
    every = {kind.cls.uses for kind in Registry(ROOT / "tests").all() if not kind.cls.network}
    others = {
        "checkpoint.inspect",
        "model.io",
        "model.onnx",
        "model.program",
        "model.transformers",
        "onnx.embed_io",
        "openvino.convert",
        "openvino.quantize",
        "package.container",
        "package.sign",
        "package.triton",
        "torch.aot",
        "verify.answers",
        "run.command",
        "run.python",
    }
    assert every - tried == {*TIMED, *others}


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
