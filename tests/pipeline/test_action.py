"""The action's inputs and outputs, as strangers use them: run as GitHub runs them (tests/actions.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.actions import ActionsCache, Done, Job, run_action
from tests.conftest import ROOT, Project, module_of


@pytest.fixture
def job(chain: Project, tmp_path: Path) -> Job:
    """A job whose pipeline lies in a folder of the repository with a blank in its name."""
    checkout = tmp_path / "repository"
    shutil.copytree(chain.folder, checkout / "my models/texts")
    (checkout / ".git").mkdir()
    return Job(checkout, ActionsCache(tmp_path / "cache"))


IN = "my models/texts"


def result_of(done: Done) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(done.outputs["result"])
    return value


def states(done: Done) -> dict[str, str]:
    return {id_: stage["state"] for id_, stage in result_of(done)["stages"].items()}


def test_every_line_of_an_input_counts_and_none_is_code(job: Job, tmp_path: Path) -> None:
    """A file with Windows line ends, comments, quotes, and text that a shell would execute."""
    job.event = "workflow_dispatch"
    suffix = "'$(touch pwned)`touch pwned`\" ${HOME} x y"
    first = run_action(
        job,
        working_directory=IN,
        stages="# the first two\r\na\r\n\r\n'b' # c\r\n\r\n",
        set=f"# no expression\r\n\r\n  stages.a.with.suffix={json.dumps(suffix)}\r\nstages.b.with.times=3\r\n",
        config="", pipeline="", extras="", push="",
    )  # fmt: skip
    assert first.success, first.log
    assert states(first) == {"a": "ran", "b": "ran"}
    assert result_of(first)["stages"]["a"]["figures"]["letters"] == len(suffix)
    assert not list(job.checkout.rglob("pwned"))
    assert json.loads(Path(first.outputs["result-file"]).read_text()) == result_of(first)
    assert "| a | ran |" in first.summary
    # A second call in the same job continues with the store of the first, whatever others have saved meanwhile.
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secret").write_bytes(bytes(32))
    job.cache.save("deploy-runner-Linux-X64-2-other", job.ref, f"{IN}/.deploy-runner", tmp_path / "other")
    second = run_action(
        job, working_directory=f"{IN}/", Stages="a b c", set=f"stages.a.with.suffix={json.dumps(suffix)}"
    )
    assert states(second) == {"a": "hit", "b": "ran", "c": "ran"}
    assert len(set(job.cache.keys)) == 3
    assert job.cache.rejected == []


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"stages": "a --force"}, "the input stages contains '--force', which is not the name of a stage"),
        ({"stages": "a 'b"}, "the input stages can't be read: No closing quotation"),
        ({"push": "yes"}, "the input push is 'yes'; set it to true or false"),
        ({"working_directory": "model"}, "the input working-directory names no folder of the workspace: model"),
    ],
    ids=["option", "quotes", "flag", "folder"],
)  # fmt: skip
def test_a_wrong_input_is_annotated_summed_up_and_json(job: Job, inputs: dict[str, str], said: str) -> None:
    done = run_action(job, **{"working_directory": IN, **inputs})
    assert not done.success
    assert f"::error::deploy-runner: {said}" in done.log
    assert said in done.summary
    if "working_directory" not in inputs:  # Else no step has run.
        assert result_of(done) == {"error": said, "exit_code": 2, "stages": {}}
    assert result_of(done)["stages"] == {}
    assert job.cache.keys == []


def test_errors_of_the_pipeline_reach_the_log_the_summary_and_the_result(job: Job) -> None:
    """Annotated beside the file's line: by its path in the repository, which is not the working directory."""
    pipeline = job.checkout / IN / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text().replace("times: 2", "tims: 2"))
    done = run_action(job, working_directory=IN)
    assert not done.success
    found = result_of(done)
    assert (found["exit_code"], found["stages"]) == (2, {})
    (problem,) = found["problems"]
    assert (problem["file"], problem["line"]) == ("pipeline.yaml", 5)
    said = f"{problem['message']} (did you mean 'times'?)"
    place = f"line=5,col={problem['column']}"
    assert f"::error file={IN}/pipeline.yaml,{place}::{said}\n" in done.log
    assert f"\nerror: pipeline.yaml:5:{problem['column']}: {said}\n" in done.log
    assert said in done.summary
    assert json.loads(Path(done.outputs["result-file"]).read_text()) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"stages": "a\nd"}, "'d'"),
        ({"pipeline": "other.yaml"}, "other.yaml"),
        ({"pipeline": "texts"}, "texts does not exist"),
        ({"config": "configs/production.yaml\n"}, "configs/production.yaml"),
        ({"set": "no expression"}, "no expression"),
        ({"set": "stages.a.with.times=x\nstages.b.with.times=-1"}, "stages.b.with.times"),
    ],
    ids=["stage", "pipeline", "name", "config", "set", "values"],
)  # fmt: skip
def test_errors_of_arguments_are_shown_alike(job: Job, inputs: dict[str, str], said: str) -> None:
    done = run_action(job, **{"working_directory": IN, **inputs})
    assert not done.success
    assert any(line.startswith("::error") and said in line for line in done.log.splitlines()), done.log
    assert said in done.summary
    assert said in result_of(done)["error"]


def test_a_failed_stage_is_annotated_in_a_repository_that_is_not_the_workspace(job: Job) -> None:
    """`actions/checkout` with `path:` puts the repository into a folder of the workspace."""
    (job.checkout / ".git").rmdir()
    (job.checkout / "my models/.git").mkdir()
    (job.checkout / IN / "pipeline.yaml").write_text(
        "version: 1\nname: t\nstages:\n  bad: {uses: text.odd, with: {how: gate}}\n"
    )
    done = run_action(job, working_directory=f"./{IN}")
    assert not done.success
    assert "::error file=texts/pipeline.yaml,line=4,col=3::bad: 3 is more than 2" in done.log
    assert states(done) == {"bad": "failed"}


def test_a_run_that_ends_without_a_result_has_one(job: Job, tmp_path: Path) -> None:
    """As one that the kernel kills because memory is full; here a module of the user's does."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/yaml.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    job.env = {"PYTHONPATH": str(tmp_path / "src")}
    done = run_action(job, working_directory=IN)
    assert not done.success
    said = "the run was ended by signal 9 without a result; the log has its messages"
    assert result_of(done) == {"error": said, "exit_code": -9, "stages": {}}
    assert f"::error::deploy-runner: {said}" in done.log
    assert said in done.summary


def test_a_result_is_shortened_until_it_fits_into_a_variable() -> None:
    action = module_of(ROOT / "action.py")
    entry = {"state": "hit", "reason": "x" * 100, "figures": {}}
    for count in (10, 1_000, 10_000, 100_000):
        stages = {f"s[{n}]": entry for n in range(count)} | {"bad": {**entry, "state": "failed"}}
        text = action.shortened({"run": "1", "failed": 1, "stages": stages})
        assert len(text) <= 100_000
        found = json.loads(text)
        assert found["stages"]["bad"]["state"] == "failed"
        assert found.get("shortened", False) == (count > 10)
        assert len(found["stages"]) == (count + 1 if count <= 1_000 else 1)


@pytest.mark.slow
def test_a_run_of_many_stages_has_a_result_and_a_cache(job: Job) -> None:
    """What is longer than a variable of the environment can be must not end the steps that follow."""
    numbers = ", ".join(map(str, range(1, 801)))
    (job.checkout / IN / "pipeline.yaml").write_text(
        "version: 1\nname: t\nstages:\n  many:\n    uses: text.upper\n    inputs: {text: in.txt}\n"
        f"    matrix: {{n: [{numbers}]}}\n    with: {{times: '${{{{ matrix.n }}}}'}}\n"
    )
    done = run_action(job, working_directory=IN)
    assert done.success, done.log
    assert result_of(done)["ran"] == 800
    full = json.loads(Path(done.outputs["result-file"]).read_text())
    assert len(json.dumps(full)) > 131_072
    assert full["stages"].keys() == result_of(done)["stages"].keys()
    assert len(job.cache.keys) == 1
