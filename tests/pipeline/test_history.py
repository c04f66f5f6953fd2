"""Runs belong to their pipeline, and are ordered by a counter; what is fetched is what the plan calls up to date."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from deploy_runner.engine.runs import kept_runs, recorded_runs
from deploy_runner.pipeline.identity import identity
from tests.conftest import Project
from tests.waiting import wait_until

UPPER = "{{uses: text.upper, inputs: {{text: in.txt}}, with: {{suffix: {}}}}}"


def write(project: Project, name: str, suffix: str) -> None:
    project.write(name, f"version: 1\nname: test\nstages:\n  a: {UPPER.format(suffix)}\n")


def numbers(project: Project, *args: str) -> list[int]:
    """Return the numbers of the runs that `show --runs` lists."""
    lines = project.cli("show", *args, "--runs").stdout.splitlines()
    return [int(line.partition("-")[0]) for line in lines]


def get(project: Project, *args: str, **env: str) -> str:
    place = project.folder / "got"
    project.cli("get", *args, "--to", str(place), **env)
    text = place.read_text()
    place.unlink()
    return text


@pytest.fixture
def two(project: Project) -> Project:
    """Two pipelines of the same `name:` in one folder, the second run last."""
    write(project, "one.yaml", "one")
    write(project, "two.yaml", "two")
    project.run("one.yaml")
    project.run("two.yaml")
    return project


def test_every_verb_sees_only_the_runs_of_its_pipeline(two: Project) -> None:
    assert get(two, "one.yaml", "a.text") == "HELLOone"
    assert get(two, "two.yaml", "a") == "HELLOtwo"
    assert numbers(two, "one.yaml") == [1]
    assert numbers(two, "two.yaml") == [2]
    assert json.loads(two.cli("show", "one.yaml", "--json").stdout)["pipeline"] == "one.yaml"
    assert "there is no run before 000001-" in two.cli("diff", "one.yaml", exits=2).stderr
    assert two.cli("cache", "pin", "one.yaml").stdout.startswith("pinned 000001-")
    write(two, "one.yaml", "uno")
    assert two.cli("explain", "one.yaml", "a").stdout.splitlines()[1] == '  `with.suffix` "one" → "uno"'


def test_a_run_of_another_pipeline_is_refused_by_name(two: Project) -> None:
    refusals = [("show", "--run"), ("get", "a", "--run"), ("diff", "--new"), ("cache", "pin", "--run")]
    for verb, *rest in refusals:
        where = (rest[0], "one.yaml") if verb == "cache" else ("one.yaml", *rest[:-1])
        said = two.cli(verb, *where, rest[-1], "2", exits=2).stderr
        assert "belongs to two.yaml, not to one.yaml (use two.yaml)" in said
    write(two, "three.yaml", "three")
    said = two.cli("show", "three.yaml", exits=2).stderr
    assert said == "error: three.yaml has not been run yet (run it, or use two.yaml, or one.yaml)\n"


def test_overlays_are_part_of_a_pipeline_and_set_is_not(project: Project) -> None:
    write(project, "pipeline.yaml", "base")
    project.write("configs/dry-run.yaml", "stages: {a: {with: {suffix: dry}}}\n")
    project.write("configs/live.yaml", "stages: {a: {with: {suffix: live}}}\n")
    project.run()
    project.run("--config", "configs/live.yaml")
    project.run("--set", "stages.a.with.suffix=new")
    assert numbers(project) == numbers(project, "--config", "configs/dry-run.yaml") == [3, 1]
    assert numbers(project, "--config", str(project.folder / "configs/live.yaml")) == [2]
    assert "a: figure letters" not in project.cli("diff").stdout
    assert "a: output text" in project.cli("diff").stdout
    assert get(project, "a") == "HELLOdry"
    assert get(project, "a", "--config", "configs/live.yaml") == "HELLOlive"
    assert get(project, "a", "--set", "stages.a.with.suffix=new") == "HELLOnew"


def test_a_project_moved_with_its_store_keeps_its_runs_and_a_copy_is_another(
    project: Project, tmp_path: Path
) -> None:
    write(project, "pipeline.yaml", "one")
    project.run()
    moved = Project(tmp_path / "moved")
    moved.folder.rmdir()
    project.folder.rename(moved.folder)
    assert numbers(moved) == [1]
    (tmp_path / "link").symlink_to(moved.folder)
    assert numbers(moved, str(tmp_path / "link/pipeline.yaml")) == [1]
    copy = Project(tmp_path / "copy")
    shutil.copytree(moved.folder, copy.folder, dirs_exist_ok=True)
    shared = str(moved.folder / ".deploy-runner")
    assert "has not been run yet" in copy.cli("show", exits=2, DEPLOY_RUNNER_HOME=shared).stderr


def test_a_link_within_a_folder_is_followed_and_one_out_of_it_is_not(tmp_path: Path) -> None:
    """A mounted ConfigMap's files are links into a folder that is another after each update."""
    for folder in ("p/..one", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.yaml").touch()
    (tmp_path / "p/a.yaml").symlink_to("..one/a.yaml")
    (tmp_path / "p/b.yaml").touch()
    (tmp_path / "p/alias.yaml").symlink_to("b.yaml")
    home = tmp_path / "p/.deploy-runner"
    assert identity(tmp_path / "p/a.yaml", [], home) == ("../a.yaml",)
    assert identity(tmp_path / "p/alias.yaml", [], home) == ("../b.yaml",)
    assert identity(tmp_path / "other/a.yaml", [], home) == ("../../other/a.yaml",)


def test_what_the_plan_calls_up_to_date_can_be_fetched_whichever_run_made_it(chain: Project) -> None:
    chain.run()
    chain.run("a")
    assert "c  hit" in chain.cli("plan").stdout
    assert get(chain, "c.text") == "HELLO!HELLO!"
    assert chain.cli("show", "c").stdout.startswith("c: ran")
    chain.cli("run", "--set", "stages.c.with.suffix=x", "c")
    assert get(chain, "c.text") == "HELLO!HELLO!"
    shown = json.loads(chain.cli("show", "c", "--json").stdout)
    assert (shown["state"], shown["up_to_date"]) == ("hit", True)


def test_what_is_not_up_to_date_is_never_fetched_silently(chain: Project) -> None:
    run = chain.run()["run"]
    chain.write("in.txt", "other")
    said = chain.cli("get", "c.text", exits=2).stderr
    assert said == (
        "error: c is not up to date: a: the input `text`: in.txt changed "
        "(run `deploy-runner run pipeline.yaml c`; --run 1 selects the output of its last run)\n"
    )
    assert get(chain, "c.text", "--run", "1") == get(chain, "c", "--run", run) == "HELLO!HELLO!"
    assert "not up to date: that was run 000001-" in chain.cli("show", "a").stdout
    assert json.loads(chain.cli("show", "a", "--json").stdout)["up_to_date"] is False
    assert "not up to date" not in chain.cli("show", "a", "--run", "1").stdout
    shutil.rmtree(chain.folder / ".deploy-runner/cas")
    chain.write("in.txt", "hello")
    assert "the output `text` is missing in the store" in chain.cli("get", "a", exits=2).stderr


def test_a_failure_is_shown_as_it_stands_until_something_changes(project: Project) -> None:
    project.pipeline("odd: {uses: text.odd, with: {how: fail}}")
    project.run(exits=1)
    shown = project.cli("show", "odd").stdout
    assert "error: it can't be done" in shown
    assert "not up to date" not in shown
    assert "odd is not up to date: not built before" in project.cli("get", "odd", exits=2).stderr
    project.pipeline("odd: {uses: text.odd, with: {how: gate}}")
    assert "not up to date" in project.cli("show", "odd").stdout


def next_year() -> dict[str, str]:
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None
    assert spec.origin is not None
    library = str(Path(spec.origin).parent / "vendor/libfaketime/src/libfaketime.so.1")
    return {"LD_PRELOAD": library, "FAKETIME": "+366d", "DONT_FAKE_MONOTONIC": "1"}


def test_a_run_under_next_years_date_is_no_later_than_the_one_after_it(chain: Project) -> None:
    ahead = chain.run("--set", "stages.a.with.suffix=old", **next_year())["run"]
    last = chain.run()["run"]
    assert ahead.partition("-")[2] > last.partition("-")[2], "the clock was not ahead"
    assert numbers(chain) == [2, 1]
    assert get(chain, "c") == "HELLO!HELLO!"
    assert json.loads(chain.cli("show", "--json").stdout)["id"] == last
    assert json.loads(chain.cli("diff", "--json").stdout)["new"] == last
    chain.cli("cache", "gc", "--keep-runs", "1")
    assert numbers(chain) == [2]
    assert chain.run()["hit"] == 3


def test_gc_keeps_the_last_runs_of_each_pipeline(two: Project) -> None:
    two.run("two.yaml")
    two.run("two.yaml")
    two.cli("cache", "gc", "--keep-runs", "1")
    assert (numbers(two, "one.yaml"), numbers(two, "two.yaml")) == ([1], [4])
    assert get(two, "one.yaml", "a") == "HELLOone"


def test_pipelines_that_are_gone_share_what_gc_keeps(two: Project) -> None:
    write(two, "three.yaml", "three")
    two.run("three.yaml")
    (two.folder / "one.yaml").unlink()
    (two.folder / "two.yaml").unlink()
    home = two.folder / ".deploy-runner"
    assert sorted(int(run[:6]) for run in kept_runs(home, 1)) == [2, 3]


@pytest.mark.parametrize("content", [None, b"", b"9" * 80, b"0" * 64 + b"\nruns 7000000", b"\xff\0"])
def test_a_lost_damaged_or_forged_counter_goes_on_from_the_recorded_runs(
    chain: Project, content: bytes | None
) -> None:
    chain.run()
    chain.run()
    home = chain.folder / ".deploy-runner"
    counter = home / "counter"
    old = counter.read_bytes()
    (home / "runs/900000-20260101T000000-abcd").mkdir()
    shutil.copy(next((home / "runs").glob("000002-*/record.json")), home / "runs/900000-20260101T000000-abcd")
    counter.unlink()
    if content is not None:
        counter.write_bytes(content)
    assert chain.run()["run"].startswith("000003-")
    counter.write_bytes(old)
    assert chain.run()["run"].startswith("000004-")
    assert numbers(chain) == [4, 3, 2, 1]


def test_runs_that_start_at_once_have_numbers_of_their_own(chain: Project) -> None:
    chain.run()
    started = [chain.start("run", "-q") for _ in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4
    for process in started:
        process.communicate()
    assert numbers(chain) == [5, 4, 3, 2, 1]


def files_of(pid: int) -> set[str]:
    """Return the files that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return found


def test_a_holder_that_was_killed_frees_the_counter(chain: Project) -> None:
    chain.run()
    lock = chain.folder / ".deploy-runner/counter.lock"
    command = ["flock", str(lock), "sh", "-c", "echo held; exec sleep 60"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waiting = chain.start("run", "-q")
    wait_until(lambda: str(lock) in files_of(waiting.pid))
    assert waiting.poll() is None
    os.killpg(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert waiting.wait(60) == 0
    waiting.communicate()
    assert [run.number for run in recorded_runs(chain.folder / ".deploy-runner")] == [2, 1]
