"""Every stage type shows a complete pipeline, which its page, its help and the schema's readers get alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy_runner.api import load
from deploy_runner.pipeline.schema import describe_stage_types, json_schema
from deploy_runner.registry import shared_example
from deploy_runner.report.stage_types import describe
from tests.examples import files_of, section, shared


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    """What `stages` prints, by stage type."""
    return {str(entry["uses"]): entry for entry in describe_stage_types(Path("/nowhere"))}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What `schema` prints."""
    return json_schema(Path("/nowhere"))


def test_every_stage_type_shows_a_pipeline_with_it_that_is_valid(
    described: dict[str, Any], schema: dict[str, Any], tmp_path: Path
) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    left = {"iris.pt": "", "iris.npz": "", "iris.csv": "", "iris.pt2": "", "colours.pt": ""}
    (tmp_path / "bert").mkdir()
    for name, text in {**shared(), **left}.items():
        (tmp_path / name).write_text(text)
    for uses in described:
        files = files_of(uses)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        graph = load(tmp_path / "pipeline.yaml", environ={"SIGNING_KEY": "x"}).graph
        assert uses in [stage.uses for stage in graph.stages.values()], uses
        validator.validate(yaml.safe_load(files["pipeline.yaml"]))
        printed = describe(described[uses], shared_example())
        for text in files.values():
            assert "\n".join(f"    {line}".rstrip() for line in text.splitlines()) in printed, uses
        assert ("# iris.py" in printed) == ("iris" in "".join(files.values()))


def test_the_page_the_help_and_the_schema_say_how_the_function_of_run_python_is_called(
    described: dict[str, Any], schema: dict[str, Any]
) -> None:
    called = "function(ctx, inputs, outputs, **params)"
    rules = schema["properties"]["stages"]["additionalProperties"]["allOf"]
    rule = next(r for r in rules if r["if"]["properties"]["uses"]["const"] == "run.python")
    said = rule["then"]["properties"]["with"]
    assert called in said["description"]
    assert called in said["properties"]["function"]["description"]
    help_text = describe(described["run.python"], shared_example())
    page = section("run.python")
    for text in (" ".join(help_text.split()), page):
        for known in (called, "`pathlib.Path`", "What it returns is ignored", "relative to the pipeline's folder",
                      "It runs again if the file changes", "`StageError` or `GateError`"):  # fmt: skip
            assert known in text, known
