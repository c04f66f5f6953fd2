"""The pipeline at the top of the repository: checkpoint to two dry-run pushes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project


def copy_of_the_repository(folder: Path) -> Project:
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "pipeline.yaml", folder)
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return Project(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict]:  # type: ignore[type-arg]
    project = copy_of_the_repository(tmp_path_factory.mktemp("main") / "project")
    return project, project.run()


def test_everything_runs_and_every_gate_holds(ran: tuple[Project, dict]) -> None:  # type: ignore[type-arg]
    _, result = ran
    assert (result["ran"], result["failed"], result["skipped"]) == (20, 0, 0)
    figures = {id_: stage["figures"] for id_, stage in result["stages"].items()}
    assert figures["weights"]["best_acc"] > 0.97
    assert figures["fp32"]["max_abs"] < 1e-4
    assert figures["fp32"]["cases"] == ["samples64", "samples1"]
    assert figures["accuracy-fp32"]["accuracy"] > 97
    for method in ("minmax", "entropy", "percentile"):
        assert figures[f"int8[{method}]"]["smaller"] >= 3
        assert figures[f"accuracy-int8[{method}]"]["drop"] <= 0.5
    assert figures["best"]["chosen"] in figures["best"]["candidates"]
    assert figures["endpoint"]["calls"] == 6
    assert figures["hub"]["calls"] == 2


def test_the_three_calibrations_really_differ(ran: tuple[Project, dict]) -> None:  # type: ignore[type-arg]
    _, result = ran
    digests = {
        result["stages"][f"int8[{m}]"]["outputs"]["model"] for m in ("minmax", "entropy", "percentile")
    }
    assert len(digests) == 3


def test_the_transcripts_name_every_object_and_call(ran: tuple[Project, dict]) -> None:  # type: ignore[type-arg]
    project, result = ran
    project.run()  # `get` reads the last run, which may be another test's.
    endpoint = json.loads(project.output("endpoint"))
    assert [call["call"] for call in endpoint["calls"]] == [
        "s3:CreateBucket", "s3:PutObject", "sagemaker:CreateModel", "sagemaker:CreateEndpointConfig",
        "sagemaker:CreateEndpoint", "s3:PutObject",
    ]  # fmt: skip
    assert endpoint["sha256"] == result["stages"]["package"]["outputs"]["package"]
    hub = json.loads(project.output("hub.transcript"))
    assert sorted(hub["files"]) == [
        "README.md", "config.json", "deploy-runner.json", "model.safetensors", "onnx/model.onnx",
        "onnx/model_best.onnx",
    ]  # fmt: skip
    assert hub["files"]["model.safetensors"] == result["stages"]["weights"]["outputs"]["weights"]


def test_the_card_is_read_before_it_goes_live_and_names_the_stage_of_every_file(
    ran: tuple[Project, dict],  # type: ignore[type-arg]
) -> None:
    project, result = ran
    project.run()  # `get` reads the last run, which may be another test's.
    card = project.output("hub.card").decode()
    rows = [row.split(" | ") for row in card.splitlines() if row.startswith(("| ONNX", "| safe", "| JSON"))]
    chosen = str(result["stages"]["best"]["figures"]["chosen"])
    maker = "onnx.export" if chosen == "fp32" else "onnx.quantize_static"
    assert {row[1]: row[3] for row in rows} == {
        "`config.json`": "hub (`push.hub`)",
        "`model.safetensors`": "weights (`checkpoint.state_dict`)",
        "`onnx/model.onnx`": "fp32 (`onnx.export`)",
        "`onnx/model_best.onnx`": f"{chosen} (`{maker}`)",
    }


def test_a_second_run_and_a_touched_input_do_nothing(ran: tuple[Project, dict]) -> None:  # type: ignore[type-arg]
    project, _ = ran
    assert project.run()["hit"] == 20
    for file in (project.folder / "examples/digits").iterdir():
        os.utime(file)
    assert project.run()["hit"] == 20


def test_one_changed_parameter_reruns_its_cone_only(ran: tuple[Project, dict]) -> None:  # type: ignore[type-arg]
    project, _ = ran
    change = ("--set", "stages.parity-int8.with.min_cosine=0.97")
    states = project.states(*change)
    assert {id_ for id_, state in states.items() if state == "ran"} == {
        "parity-int8[minmax]", "parity-int8[entropy]", "parity-int8[percentile]",
        "hub",  # The card says what everything was made from, and how.
    }  # fmt: skip


def test_an_int8_model_that_loses_too_much_fails_its_gate_by_name(ran: tuple[Project, dict]) -> None:  # type: ignore[type-arg]
    project, _ = ran
    # A range of the middle 80 % of the values cuts many activations off.
    change = ("--set", "stages.int8.with.percentile=80", "--set", "stages.int8.matrix.method=[percentile]")
    refused = project.run(*change, exits=1)["stages"]["int8[percentile]"]["error"]
    assert "below 0.98; percentile clips values that matter" in refused
    lower = ("--set", "stages.int8.with.min_cosine=0.8", "--set", "stages.int8.with.min_agreement=0.8")
    result = project.run(*change, *lower, exits=1)
    error = result["stages"]["accuracy-int8[percentile]"]["error"]
    assert error.startswith("accuracy-int8[percentile]: the accuracy drops by ")
    assert result["stages"]["package"]["state"] == "skipped"


@pytest.mark.slow
def test_the_same_bytes_in_another_folder_umask_time_zone_and_hash_seed(
    ran: tuple[Project, dict],  # type: ignore[type-arg]
    tmp_path: Path,
) -> None:
    _, first = ran
    project = copy_of_the_repository(tmp_path / "another folder")
    before = os.umask(0o077)
    try:
        second = project.run(TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    finally:
        os.umask(before)
    # What `select` chooses hangs on measured latencies, and what follows from it too.
    measured = {"best", "package", "endpoint", "hub"}
    for id_, stage in first["stages"].items():
        if id_ not in measured:
            assert second["stages"][id_]["outputs"] == stage["outputs"], id_
