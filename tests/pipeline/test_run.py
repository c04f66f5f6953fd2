"""A run makes what is missing, and only that."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import DIGITS, Project
from tests.waiting import wait_until


def test_a_fresh_run_makes_everything_and_a_second_run_nothing(chain: Project) -> None:
    first = chain.run()
    assert (first["ran"], first["hit"]) == (3, 0)
    assert chain.output("c") == b"HELLO!HELLO!"
    second = chain.run()
    assert (second["ran"], second["hit"]) == (0, 3)
    assert {k: v["outputs"] for k, v in second["stages"].items()} == {
        k: v["outputs"] for k, v in first["stages"].items()
    }
    assert second["stages"]["a"]["figures"] == {"letters": 1}


def test_touch_without_change_is_a_hit(chain: Project) -> None:
    chain.run()
    for file in (chain.folder / "in.txt", chain.folder / "pipeline.yaml", chain.folder / "stages/texts.py"):
        os.utime(file)
    assert chain.run()["hit"] == 3


def test_a_run_of_hits_sweeps_what_a_killed_run_left(chain: Project) -> None:
    chain.run()
    left = chain.folder / ".deploy-runner/tmp/1-dead"
    left.mkdir(parents=True)
    left.with_name("1-dead.lock").touch()
    assert chain.run()["hit"] == 3
    assert not list(left.parent.iterdir())


def test_a_changed_input_runs_its_cone(chain: Project) -> None:
    chain.run()
    chain.write("in.txt", "bye")
    assert chain.states() == {"a": "ran", "b": "ran", "c": "ran"}
    assert chain.output("c") == b"BYE!BYE!"


def test_a_changed_parameter_runs_just_its_cone_and_explain_names_it(chain: Project) -> None:
    chain.run()
    text = (chain.folder / "pipeline.yaml").read_text().replace("times: 2", "times: 3")
    (chain.folder / "pipeline.yaml").write_text(text)
    said = chain.cli("explain", "b").stdout
    assert said == "b: miss: changed since the last run\n  `with.times` 2 → 3\n"
    assert chain.cli("explain", "c").stdout == "c: waits: for b: `with.times` 2 → 3\n"
    assert chain.states() == {"a": "hit", "b": "ran", "c": "ran"}


def test_the_same_bytes_stop_the_wave(chain: Project) -> None:
    chain.run()
    chain.write("in.txt", "HELLO")
    assert chain.states() == {"a": "ran", "b": "hit", "c": "hit"}


def test_an_edited_stage_type_is_run_again(chain: Project) -> None:
    chain.run()
    source = chain.folder / "stages/texts.py"
    source.write_text(source.read_text().replace(".upper()", ".lower()"))
    assert "the stage's code texts.py changed" in chain.cli("explain", "a").stdout
    assert chain.states()["a"] == "ran"


def test_a_named_stage_is_made_with_what_it_needs_only(chain: Project) -> None:
    assert chain.states("pipeline.yaml", "b") == {"a": "ran", "b": "ran"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_object_is_detected_and_healed(chain: Project, damage: str) -> None:
    first = chain.run()
    for target in chain.objects():
        before = target.read_bytes()
        target.chmod(0o644)
        if damage == "delete":
            target.unlink()
        else:
            flipped = bytes([before[0] ^ 1]) + before[1:]
            changed = {"flip": flipped, "truncate": before[:-1], "empty": b""}[damage]
            target.write_bytes(changed)
        again = chain.run()
        assert again["healed"] == 1, again
        assert target.read_bytes() == before
        assert [s["outputs"] for s in again["stages"].values()] == [
            s["outputs"] for s in first["stages"].values()
        ]


def test_a_damaged_action_record_is_a_miss(chain: Project) -> None:
    chain.run()
    for record in (chain.folder / ".deploy-runner/actions").rglob("*.json"):
        data = bytearray(record.read_bytes())
        data[len(data) // 2] ^= 1
        record.write_bytes(bytes(data))
    plan = json.loads(chain.cli("plan", "--json").stdout)["actions"]
    assert plan[0]["reason"] == "its action record is damaged"
    assert chain.run()["ran"] == 3


def test_a_key_that_is_set_later_says_why_all_is_made_again(chain: Project) -> None:
    chain.run()
    key = {"DEPLOY_RUNNER_CACHE_KEY": "a secret of more than 32 characters"}
    plan = json.loads(chain.cli("plan", "--json", **key).stdout)["actions"]
    assert "was sealed with another key (was DEPLOY_RUNNER_CACHE_KEY set, changed or" in plan[0]["reason"]
    assert chain.run(**key)["ran"] == 3
    assert chain.run(**key)["hit"] == 3


def test_a_record_of_another_store_is_refused(chain: Project) -> None:
    chain.run()
    (chain.folder / ".deploy-runner/secret").write_bytes(b"x" * 32)
    assert chain.run()["ran"] == 3


@pytest.mark.parametrize("name", ["stat.sqlite", "last", "compiled"])
def test_an_unreadable_state_file_is_never_fatal(chain: Project, name: str) -> None:
    chain.run()
    place = chain.folder / ".deploy-runner" / name
    for file in [place] if place.is_file() else place.rglob("*.json"):
        file.write_bytes(b"\x00garbage")
    assert chain.run()["hit"] == 3


def test_independent_stages_go_on_when_one_fails(project: Project) -> None:
    project.pipeline(
        """
        bad: {uses: text.odd, with: {how: fail}}
        after: {uses: text.upper, inputs: {text: "${{ stages.bad.outputs.text }}"}}
        later: {uses: text.upper, inputs: {text: "${{ stages.after.outputs.text }}"}}
        good: {uses: text.upper, inputs: {text: in.txt}}
        """
    )
    result = project.run(exits=1)
    assert {k: v["state"] for k, v in result["stages"].items()} == {
        "bad": "failed",
        "after": "skipped",
        "later": "skipped",
        "good": "ran",
    }
    assert result["stages"]["bad"]["error"] == "it can't be done (do something else)"
    assert result["stages"]["later"]["reason"] == "it needs bad"


def test_fail_fast_starts_nothing_more(project: Project) -> None:
    project.pipeline(
        """
        bad: {uses: text.odd, with: {how: fail}}
        good: {uses: text.upper, needs: [bad], inputs: {text: in.txt}}
        other: {uses: text.upper, inputs: {text: in.txt}}
        """
    )
    states = project.states("--fail-fast", "--cpu", "1", exits=1)
    assert states["bad"] == "failed"
    assert states["other"] == "skipped"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("gate", "3 is more than 2"),
        ("crash", "ZeroDivisionError: division by zero (see the stage's log for the traceback)"),
        ("kill", "its worker was killed by SIGKILL (out of memory?)"),
        ("exit", "its worker exited 7"),
        ("nothing", "it did not write its output `text` (odd.txt)"),
        ("extra", "it wrote extra.txt, which is not a declared output"),
    ],
)
def test_a_stage_that_misbehaves_fails_with_one_clear_sentence(project: Project, how: str, said: str) -> None:
    project.pipeline(f"odd: {{uses: text.odd, with: {{how: {how}}}}}")
    result = project.run(exits=1)
    assert result["failed"] == 1
    assert result["stages"]["odd"]["error"].startswith(said)
    assert not list((project.folder / ".deploy-runner/tmp").iterdir())


def test_the_figures_of_a_refused_gate_are_recorded(project: Project) -> None:
    project.pipeline("odd: {uses: text.odd, with: {how: gate}}")
    assert project.run(exits=1)["stages"]["odd"]["figures"] == {"measured": 3}


def test_a_link_as_an_output_is_refused(project: Project) -> None:
    project.pipeline("odd: {uses: text.odd, with: {how: link}}")
    assert project.run(exits=1)["stages"]["odd"]["state"] == "failed"


def test_a_timeout_ends_a_stage(project: Project) -> None:
    project.pipeline("slow: {uses: text.odd, timeout: 300ms, with: {how: sleep}}")
    error = project.run(exits=1)["stages"]["slow"]["error"]
    assert error.startswith("timed out after 0.3 s")


def test_a_timeout_ends_what_a_stage_has_started(project: Project) -> None:
    """The child has a command line of its own, which no other test's child has."""
    command = f"sleep 61.{uuid4().int}"
    how = f'{{how: sleep-child, path: "{command.removeprefix("sleep ")}"}}'
    project.pipeline(f"slow: {{uses: text.odd, timeout: 3s, with: {how}}}")
    process = project.start("run", "--json")
    wait_until(lambda: command in _command_lines())
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert json.loads(out.splitlines()[-1])["stages"]["slow"]["error"].startswith("timed out after 3 s")
    assert command not in _command_lines()


def _command_lines() -> str:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return "\n".join(found)


def test_a_stage_cannot_write_outside_of_its_workdir(project: Project) -> None:
    target = project.folder / "stolen.txt"
    project.pipeline(f"writer: {{uses: text.odd, with: {{how: write, path: {target}}}}}")
    project.run(exits=1)
    assert not target.exists()


def test_a_stage_has_no_network(project: Project, used_port: int) -> None:
    project.pipeline(f'caller: {{uses: text.odd, with: {{how: connect, path: "{used_port}"}}}}')
    error = project.run(exits=1)["stages"]["caller"]["error"]
    assert "Error" in error


def test_a_worker_inherits_no_environment_but_what_is_declared(project: Project) -> None:
    project.pipeline("odd: {uses: text.odd, env: [WANTED], with: {how: env}}", head="env: {WANTED: null}\n")
    project.run(WANTED="yes", UNWANTED="no", AWS_SECRET_ACCESS_KEY="secret")
    names = project.output("odd", WANTED="yes").decode().splitlines()
    assert "WANTED" in names
    assert not {"UNWANTED", "AWS_SECRET_ACCESS_KEY"} & set(names)


def test_a_run_writes_nothing_into_the_home_folder(project: Project, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(DIGITS / "digits.pt", project.folder)
    project.pipeline("weights: {uses: checkpoint.state_dict, inputs: {checkpoint: digits.pt}}")
    project.run(HOME=str(home))
    assert not list(home.iterdir())


def test_a_secret_is_written_nowhere(project: Project) -> None:
    import base64
    import urllib.parse

    secret = "s3cr3t/väl+ue&more"
    project.pipeline(
        """
        odd: {uses: text.odd, with: {how: log, secret: "${{ secrets.TOKEN }}"}}
        """
    )
    result = project.run(TOKEN=secret)
    assert result["stages"]["odd"]["figures"] == {"said": "[secret TOKEN]"}
    forms = [secret.encode(), base64.b64encode(secret.encode()), urllib.parse.quote(secret).encode()]
    for file in (project.folder / ".deploy-runner").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(form in data for form in forms), file
    assert project.run(TOKEN="another-value")["hit"] == 1


def test_a_missing_secret_is_one_sentence(project: Project) -> None:
    project.pipeline('odd: {uses: text.odd, with: {secret: "${{ secrets.TOKEN }}"}}')
    assert project.run(exits=1)["stages"]["odd"]["error"] == "the secret TOKEN is not set (export TOKEN=…)"


def test_ready_stages_run_side_by_side(project: Project) -> None:
    # Both say that they have begun before either ends.
    project.pipeline(
        """
        one: {uses: run.command, with: {command: "echo on one; sleep 100"}}
        two: {uses: run.command, with: {command: "echo on two; sleep 100"}}
        """
    )
    process = project.start("run", "--cpu", "2", "--json")
    logs = project.folder / ".deploy-runner/runs"
    wait_until(lambda: sum("on" in log.read_text() for log in logs.glob("*/logs/*.log")) == 2)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1])["interrupted"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_only_finished_artifacts_and_the_next_one_goes_on(
    project: Project, number: signal.Signals
) -> None:
    project.pipeline(
        """
        done: {uses: text.upper, inputs: {text: in.txt}}
        slow: {uses: text.odd, needs: [done], with: {how: "${{ vars.how }}"}}
        """,
        head="vars: {how: sleep}\n",
    )
    process = project.start("run", "--json")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("> slow"):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    result = json.loads(out.splitlines()[-1])
    assert result["stages"]["slow"]["state"] == "interrupted"
    assert not list((project.folder / ".deploy-runner/tmp").iterdir())
    assert project.states("--set", "vars.how=well") == {"done": "hit", "slow": "ran"}


def test_eight_runs_at_once_make_each_artifact_once(chain: Project) -> None:
    processes = [chain.start("run", "--json") for _ in range(8)]
    results = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    assert sum(r["ran"] for r in results) == 3
    assert len({json.dumps({k: v["outputs"] for k, v in r["stages"].items()}) for r in results}) == 1


def test_a_file_that_changes_under_a_hit_is_seen(chain: Project) -> None:
    chain.run()
    path = chain.folder / "in.txt"
    state = path.stat()
    path.write_text("jello")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert chain.states()["a"] == "ran"


def test_force_runs_the_named_stage_again(chain: Project) -> None:
    chain.run()
    assert chain.states("b", "--force") == {"a": "hit", "b": "ran"}


def test_keep_workdirs_says_where_they_are(chain: Project) -> None:
    workdir = Path(chain.run("a", "--keep-workdirs")["stages"]["a"]["workdir"])
    assert (workdir / "inputs" / "text.txt").read_text() == "hello"
