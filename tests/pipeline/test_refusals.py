"""What a gate wrote before it refused is kept beside the run: the worst sample, the report, the plot."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DIGITS, Project

MODEL = "${{ stages.model.outputs.model }}"
ONNX = "${{ stages.onnx.outputs.model }}"
INT8 = "${{ stages.int8.outputs.model }}"


def prepared(**params: object) -> dict[str, object]:
    return {
        "uses": "model.prepare",
        "inputs": {"weights": "${{ stages.weights.outputs.weights }}"},
        "with": {"factory": "model.py:build", "example": {"shape": [1, 1, 8, 8]}, **params},
    }


STAGES = {
    "weights": {"uses": "checkpoint.state_dict", "inputs": {"checkpoint": "digits.pt"}},
    "model": prepared(expect_shape=[1, 10]),
    "wrong": prepared(expect_shape=[1, 11]),
    "onnx": {"uses": "onnx.export", "inputs": {"model": MODEL}},
    "int8": {"uses": "onnx.quantize_static", "inputs": {"model": ONNX, "calibration": "calibration.npz"}},
    "parity": {"uses": "verify.parity", "inputs": {"candidate": INT8, "reference": MODEL}, "with": {"atol": 1e-5}},
    "accuracy": {"uses": "verify.accuracy", "inputs": {"candidate": ONNX, "reference": MODEL, "data": "heldout.npz"}},
    "best": {
        "uses": "select",
        "inputs": {
            "candidates": {"fp32": ONNX, "int8": INT8},
            "accuracy": {"fp32": "worse.json", "int8": "worse.json"},
            "reference": MODEL,
        },
        "with": {"objective": "size", "rounds": 5},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("refused") / "p")
    for name in ("digits.pt", "model.py", "calibration.npz", "heldout.npz"):
        shutil.copy(DIGITS / name, made.folder / name)
    made.write("worse.json", json.dumps({"accuracy": 90.0, "drop": 9.0}))
    made.write("pipeline.yaml", json.dumps({"version": 1, "name": "refused", "stages": STAGES}))
    assert made.cli("run", exits=None).returncode == 1
    return made


def run_of(project: Project) -> tuple[Path, dict[str, dict]]:  # type: ignore[type-arg]
    (record,) = (project.folder / ".deploy-runner/runs").glob("*/record.json")
    return record.parent, json.loads(record.read_text())["stages"]


def test_the_worst_sample_of_a_refused_model_is_there_to_look_at(project: Project) -> None:
    run, stages = run_of(project)
    assert stages["parity"]["evidence"] == str(run / "refused/parity")
    assert json.loads((run / "refused/parity/parity.json").read_text())["worst"] in stages["parity"]["error"]
    with np.load(run / "refused/parity/worst.npz") as worst:
        difference = np.abs(worst["actual/output"] - worst["expected/output"]).max()
        assert worst["in/image"].shape == (1, 1, 8, 8)
    assert difference > 1e-5
    assert f"evidence: {run}/refused/parity" in project.cli("show", "parity").stdout
    page = (run / "report.html").read_text()
    assert f"{run}/refused/parity" in page
    assert stages["parity"]["figures"]["worst"] in stages["parity"]["error"]
    picture = base64.b64encode((run / "refused/parity/worst.png").read_bytes()).decode()
    assert (
        page.count(f'<img src="data:image/png;base64,{picture}" class="small" alt="input of the worst') == 1
    )


def test_the_checklist_has_a_line_for_each_check_passed_or_failed(project: Project) -> None:
    run, stages = run_of(project)
    lines = stages["wrong"]["figures"]["checklist"]
    assert {name: line["result"] for name, line in lines.items()} == {
        "eval mode": "pass",
        "CPU tensors": "pass",
        "no gradients": "pass",
        "expected shapes": "fail",
        "finite outputs": "pass",
        "batch of one agrees": "pass",
        "deterministic": "pass",
        "no training-only state": "pass",
        "dynamic axes": "pass",
        "outputs depend on inputs": "pass",
    }
    assert set(json.loads((run / "refused/wrong/checklist.json").read_text())) == set(lines)
    assert {line["result"] for line in stages["model"]["figures"]["checklist"].values()} == {"pass"}
    assert "expected shapes</th><td>fail</td>" in (run / "report.html").read_text()


def test_a_choice_without_a_candidate_leaves_its_plot_and_table(project: Project) -> None:
    run, stages = run_of(project)
    assert "loss of accuracy (points)" in (run / "refused/best/pareto.svg").read_text()
    table = stages["best"]["figures"]["candidates"]
    assert {name: row["pareto"] for name, row in table.items()} == {"fp32": False, "int8": True}


def test_a_refused_stage_is_made_again_and_what_succeeds_leaves_nothing(project: Project) -> None:
    run, stages = run_of(project)
    assert sorted(p.name for p in (run / "refused").iterdir()) == ["best", "parity", "wrong"]
    assert all("evidence" not in stages[name] for name in ("weights", "model", "onnx", "accuracy"))
    assert stages["parity"]["outputs"] == {}
