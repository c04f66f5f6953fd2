"""Each example project runs in a copy of its folder, and finds out what its page says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Project

pytestmark = pytest.mark.slow


def ran(name: str, tmp_path: Path, *args: str, within: str = "") -> dict[str, Any]:
    """Run a copy of an example, or one that is `within` the project; return the figures of its stages."""
    project = Project(tmp_path / name)
    ignored = shutil.ignore_patterns(".deploy-runner", "__pycache__")
    place = project.folder / within
    shutil.copytree(ROOT / "examples" / name, place, dirs_exist_ok=True, ignore=ignored)
    result = project.run(*args)
    assert (result["failed"], result["skipped"], result["hit"]) == (0, 0, 0)
    assert project.run(*args)["ran"] == 0
    return {id_: stage["figures"] for id_, stage in result["stages"].items()}


def test_photographs_are_enlarged_in_float_since_int8_loses_too_much(tmp_path: Path) -> None:
    figures = ran("pictures", tmp_path)
    assert figures["accuracy-fp32"]["accuracy"] == pytest.approx(93.01, abs=0.05)
    for method in ("minmax", "percentile"):
        assert 0.2 < figures[f"accuracy-int8[{method}]"]["drop"] < 0.6
    assert figures["best"]["chosen"] == "fp32"
    assert figures["endpoint"]["smoke_samples"] == 14


def test_languages_are_told_in_half_precision_as_well(tmp_path: Path) -> None:
    figures = ran("text", tmp_path)
    assert figures["accuracy-fp32"]["accuracy"] == figures["accuracy-fp16"]["accuracy"]
    assert figures["accuracy-fp32"]["accuracy"] == pytest.approx(93.79, abs=0.25)
    assert figures["answers-int8"]["agreement"] >= 99
    assert figures["best"]["chosen"] == "fp16"
    assert figures["hub"]["repo"] == "local/languages"


def test_drums_are_told_apart_by_an_int8_program_for_phones(tmp_path: Path) -> None:
    figures = ran("sound", tmp_path)
    assert figures["io"]["golden_files"] == 39
    assert figures["accuracy[none]"]["accuracy"] == pytest.approx(92.31, abs=0.01)
    assert figures["accuracy[int8]"]["drop"] <= 3
    assert figures["best"]["chosen"] == "phone[int8]"
    assert figures["bucket"]["uri"].startswith("s3://drum-models/models/drums/")


def test_rows_of_a_csv_are_answered_by_a_container(tmp_path: Path) -> None:
    figures = ran("table", tmp_path)
    for precision in ("fp32", "int8"):
        assert figures[f"accuracy-{precision}"]["samples"] == 171
        assert figures[f"accuracy-{precision}"]["accuracy"] == pytest.approx(95.32, abs=0.6)
    assert figures["best"]["chosen"] in ("fp32", "int8")
    assert figures["image"]["max_abs"] < 1e-4


def test_the_onnx_file_of_a_package_gets_smaller_and_stays_as_accurate(tmp_path: Path) -> None:
    command = "deploy-runner run examples/onnx/pipeline.yaml"
    assert f"\n$ .venv/bin/{command}\n" in (ROOT / "README.md").read_text()
    figures = ran("onnx", tmp_path, *command.split()[2:], within="examples/onnx")
    assert figures["model"]["bytes"] == 3_163_737
    assert figures["files"]["files"] > 100
    assert figures["accuracy-original"]["accuracy"] > 95
    assert figures["accuracy-int8"]["drop"] <= 0.5
    assert figures["best"]["chosen"] == "int8"
    assert figures["package"]["bytes"] < 3_000_000
