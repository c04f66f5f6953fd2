"""verify.* and select on the digits example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy_runner.errors import GateError
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import bundle as bundle_of
from tests.bundles import stage
from tests.conftest import HELD


def parity(tmp_path: Path, candidate: Path, bundle: Path, **params: Any) -> StageRun:
    return run_stage(
        stage("verify.parity"), tmp_path, inputs={"candidate": candidate, "reference": bundle}, params=params
    )


def test_parity_holds_for_fp32_and_is_refused_for_int8_by_name(
    tmp_path: Path, fp32: Path, int8: Path, bundle: Path
) -> None:
    held = parity(tmp_path / "a", fp32, bundle, atol=1e-5, rtol=1e-5)
    assert held.figures["samples"] == 65
    with np.load(held["worst"]) as worst:
        difference = np.abs(worst["actual/output"] - worst["expected/output"])
        assert worst["in/image"].shape == (1, 1, 8, 8)
        assert 0 < difference.max() <= held.figures["max_abs"]
    with pytest.raises(
        GateError,
        match=r"verify.parity: the outputs differ by up to .*; worst at samples64, output 'output', sample \d+",
    ):
        parity(tmp_path / "b", int8, bundle, atol=1e-5, rtol=1e-5)
    assert parity(tmp_path / "c", int8, bundle, min_argmax_agreement=0.9).figures["argmax_agreement"] > 0.9
    with pytest.raises(GateError, match="the cosine similarity falls to"):
        parity(tmp_path / "d", int8, bundle, min_cosine=1.0)
    with pytest.raises(
        GateError, match="the outputs differ by up to .* that is explained by its type's rounding"
    ):
        parity(tmp_path / "e", int8, bundle)


def test_accuracy_is_measured_against_the_reference(tmp_path: Path, int8: Path, bundle: Path) -> None:
    inputs = {"candidate": int8, "data": HELD, "reference": bundle}
    report = json.loads(run_stage(stage("verify.accuracy"), tmp_path, inputs=inputs)["report"].read_text())
    assert report["reference_accuracy"] > 97
    assert report["drop"] <= 0.5
    with pytest.raises(GateError, match=r"the accuracy is 9\d\.\d\d %, below 100 %"):
        run_stage(stage("verify.accuracy"), tmp_path / "b", inputs=inputs, params={"min_accuracy": 100.0})


def test_accuracy_takes_a_metric_of_ones_own(tmp_path: Path, fp32: Path) -> None:
    (tmp_path / "metric.py").write_text("def always(outputs, labels):\n    return 0.5\n")
    made = run_stage(stage("verify.accuracy"), tmp_path, inputs={"candidate": fp32, "data": rename(tmp_path)},
                     params={"metric": "metric.py:always"}, project=tmp_path)  # fmt: skip
    assert made.figures["accuracy"] == 50.0


def rename(tmp_path: Path) -> Path:
    with np.load(HELD) as held:
        np.savez(tmp_path / "named.npz", image=held["x"], y=held["y"])
    return tmp_path / "named.npz"


def test_latency_and_size_are_gates_too(tmp_path: Path, fp32: Path, int8: Path, bundle: Path) -> None:
    inputs = {"candidate": int8, "reference": bundle}
    made = run_stage(stage("verify.latency"), tmp_path / "l", inputs=inputs, params={"rounds": 20})
    assert made.figures["latency_ratio"] > 0
    assert made.figures["p95_ratio"] > 0
    report = json.loads(made["report"].read_text())
    assert report["p95_ratio"] == pytest.approx(
        report["p95_us"]["candidate"] / report["p95_us"]["reference"], rel=0.1
    )
    with pytest.raises(GateError, match="the 95th percentile of the latency is"):
        run_stage(
            stage("verify.latency"),
            tmp_path / "p",
            inputs=inputs,
            params={"rounds": 5, "max_p95_ratio": 1e-6},
        )
    with pytest.raises(GateError, match="times the original"):
        run_stage(
            stage("verify.latency"), tmp_path / "m", inputs=inputs, params={"rounds": 5, "max_ratio": 1e-6}
        )
    sized = {"candidate": int8, "reference": fp32}
    assert (
        run_stage(stage("verify.size"), tmp_path / "s", inputs=sized, params={"min_smaller": 3.0}).figures[
            "smaller"
        ]
        > 3
    )
    with pytest.raises(GateError, match="the limit is 1000"):
        run_stage(stage("verify.size"), tmp_path / "t", inputs=sized, params={"max_bytes": 1000})


def report(path: Path, drop: float) -> Path:
    path.write_text(json.dumps({"accuracy": 99.0 - drop, "drop": drop}))
    return path


def test_select_takes_the_best_within_the_limit(tmp_path: Path, fp32: Path, int8: Path, bundle: Path) -> None:
    inputs = {
        "candidates": {"a": fp32, "b": int8},
        "accuracy": {"a": report(tmp_path / "a", 0.0), "b": report(tmp_path / "b", 0.7)},
        "reference": bundle,
    }
    strict = run_stage(stage("select"), tmp_path / "s", inputs=inputs, params={"objective": "size"})
    assert strict.figures["chosen"] == "a"
    loose = run_stage(
        stage("select"), tmp_path / "l", inputs=inputs, params={"objective": "size", "max_drop": 1.0}
    )
    assert loose.figures["chosen"] == "b"
    assert "loss of accuracy (points)" in loose["plot"].read_text()
    assert (loose["model"] / "model.onnx").read_bytes() == (int8 / "model.onnx").read_bytes()
    inputs["accuracy"] = {"a": report(tmp_path / "a", 2.0), "b": report(tmp_path / "b", 3.0)}
    with pytest.raises(
        GateError, match=r"no candidate meets the limits: a loses 2\.00 points; b loses 3\.00 points"
    ):
        run_stage(stage("select"), tmp_path / "n", inputs=inputs)


def test_a_file_that_takes_its_inputs_for_each_other_is_refused(tmp_path: Path) -> None:
    """Two inputs of one shape are tried with values of their own, so that left - right is not right - left."""
    reference = bundle_of(tmp_path, "two")["model"]
    made = run_stage(stage("onnx.export"), tmp_path / "o", inputs={"model": reference})["model"]
    model = onnx.load(made / "model.onnx")
    other = {"left": "right", "right": "left"}
    for node in model.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
    onnx.save(model, tmp_path / "exchanged.onnx")
    parity(tmp_path / "right", made, reference)
    with pytest.raises(GateError, match="worst at batch5, output 'difference'"):
        parity(tmp_path / "wrong", tmp_path / "exchanged.onnx", reference)
