"""The command line: what each verb prints, and its exit code."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy_runner.cli import build_parser
from tests.conftest import Project

VERBS = (
    "run", "plan", "validate", "explain", "graph", "show", "get", "diff", "status", "rollback", "promote", "cache", "stages", "schema", "init", "convert", "verify", "serve", "ui", "doctor", "completion",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(project: Project, verb: str) -> None:
    assert f"deploy-runner {verb}" in project.cli(verb, "--help").stdout


def test_the_set_of_verbs_and_flags_is_frozen() -> None:
    actions = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert tuple(actions) == VERBS  # type: ignore[arg-type]
    flags = {s for parser in actions.values() for a in parser._actions for s in a.option_strings}  # type: ignore[union-attr]
    assert flags == {
        "-h", "--help", "--debug", "--config", "--set", "--json", "--fail-fast", "--force", "--cpu", "--memory",
        "--keep-workdirs", "--require-sandbox", "--executor", "--ray-address", "--log", "-q", "--quiet", "--values", "--format", "--run", "--runs", "--replay",
        "-o", "--to", "--old", "--new", "--remote", "--keep-runs", "--keep-days", "--dry-run", "--factory", "--shape",
        "--dtype", "--calibration", "--output", "--pipeline", "--goal", "--kwargs", "--copy", "--ci",
        "--key", "--certificate", "--status", "--list",
        "--access-log", "--atol", "--device", "--drain-s", "--host", "--lame-duck-s", "--max-batch", "--max-body",
        "--io", "--max-delay-us", "--max-queue", "--max-samples", "--name", "--port", "--reference", "--rtol",
        "--run-in", "--server", "--threads", "--timeout-s", "--trust", "--watch", "--workers",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["run", "nope.yaml"],
            "error: nope.yaml does not exist (write one with `deploy-runner init CHECKPOINT`)",
        ),
        (["run", "stages/"], "error: stages is a folder (use the pipeline's YAML file)"),
        (["run", "d"], "error: pipeline.yaml has no stage 'd' (the stages are a, b, c)"),
        (["get"], "`deploy-runner get --list` lists them"),
        (["get", "--list", "--to", "x"], "error: get --list copies nothing: --to is for one output"),
        (["show"], "error: there are no runs yet (start with `deploy-runner run`)"),
        (
            ["get", "a"],
            "error: a is not up to date: not built before (run `deploy-runner run pipeline.yaml a`)",
        ),
        (
            ["stages", "onnx.exprt"],
            "error: there is no stage type 'onnx.exprt' (did you mean 'onnx.export'?)",
        ),
        (["run", "--config", "nope.yaml"], "error: nope.yaml does not exist"),
        (["run", "--memory", "lots"], "is not a size such as 512MiB or 2GB"),
        (["run", "--cpu", "0"], "'0' is not a whole number above 0"),
        ([], "error: the verb comes first (`deploy-runner --help` lists the verbs)\n"),
        (["--json", "run"], "error: the verb comes first"),
        (["frobnicate"], "error: there is no verb 'frobnicate' (`deploy-runner --help` lists the verbs)\n"),
        (["rnu"], "error: there is no verb 'rnu' (did you mean 'run'?)\n"),
        (
            ["run", "--nope"],
            "error: deploy-runner run has no option --nope (`deploy-runner run --help` lists the options)\n",
        ),
        (["plan", "--jsno=x"], "error: deploy-runner plan has no option --jsno (did you mean '--json'?)\n"),
        (["cache"], "error: deploy-runner cache needs one of status, verify, gc, push, pull, pin, unpin\n"),
        (["cache", "gcc"], "push, pull, pin, unpin (did you mean 'gc'?)\n"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(chain: Project, args: list[str], said: str) -> None:
    assert said in chain.cli(*args, exits=2).stderr


def test_options_may_stand_anywhere(chain: Project) -> None:
    assert chain.states("pipeline.yaml", "--set", "stages.a.with.suffix=x", "a") == {"a": "ran"}


def test_validate_says_how_many_stages(chain: Project) -> None:
    assert chain.cli("validate").stdout == "pipeline.yaml: valid, 3 stages\n"
    value = json.loads(chain.cli("validate", "--json").stdout)
    assert value == {"valid": True, "name": "test", "stages": ["a", "b", "c"]}


def test_plan_shows_what_would_run_and_why_without_running(chain: Project) -> None:
    assert chain.cli("plan").stdout == (
        "a  miss     not built before\nb  waits    for a\nc  waits    for b\n3 stages: 3 to run, 0 up to date\n"
    )
    assert not chain.objects()
    chain.run()
    assert chain.cli("plan").stdout.endswith("3 stages: 0 to run, 3 up to date\n")


def test_plan_values_says_where_each_value_comes_from(chain: Project) -> None:
    lines = chain.cli("plan", "--values", "--set", "stages.b.with.times=5").stdout.splitlines()
    assert 'stages.a.with.suffix = "!"  (pipeline.yaml:4:64)' in lines
    assert "stages.b.with.times = 5  (--set stages.b.with.times=5)" in lines
    assert "stages.a.with.times = 1  (default)" in lines


def test_graph_draws_in_three_forms(chain: Project) -> None:
    assert chain.cli("graph").stdout.splitlines()[1] == "b  text.upper  ← a"
    assert "s0 --> s1" in chain.cli("graph", "--format", "mermaid").stdout
    assert '"a" -> "b";' in chain.cli("graph", "--format", "dot").stdout


def test_show_and_diff_tell_the_runs_apart(chain: Project) -> None:
    chain.run()
    screen = chain.cli("run", "--set", "stages.a.with.suffix=??").stdout.splitlines()
    assert 'Changed since run 1: size was 12 B; a: with.suffix "!" to "??".' in screen
    assert len(chain.cli("show", "--runs").stdout.splitlines()) == 2
    shown = chain.cli("show", "a", "--set", "stages.a.with.suffix=??").stdout
    assert "figure letters: 2" in shown
    assert "a: figure letters 1 → 2" in chain.cli("diff").stdout
    assert chain.cli("show", "a", "--replay").stdout == (
        "deploy-runner run pipeline.yaml a --force --keep-workdirs --log\n"
    )
    assert "did you mean 'a'" in chain.cli("show", "aa", exits=2).stderr


def test_show_log_prints_what_the_worker_printed(project: Project) -> None:
    project.pipeline("odd: {uses: text.odd, with: {how: log}}")
    project.run()
    assert project.cli("show", "odd", "--log").stdout == "the secret is \n"


def test_get_copies_an_output_and_never_overwrites(chain: Project) -> None:
    chain.run()
    assert chain.cli("get", "c.text").stdout == "upper.txt\n"
    assert (chain.folder / "upper.txt").read_text() == "HELLO!HELLO!"
    assert "already exists" in chain.cli("get", "c.text", exits=2).stderr
    assert "has no output 'nope'" in chain.cli("get", "c.nope", exits=2).stderr


def test_a_run_ends_with_its_results_how_to_get_one_and_its_report(chain: Project) -> None:
    screen = chain.cli("run", NO_COLOR="1").stdout.splitlines()[-6:]
    counts, made, figures, changed, copy, report = screen
    assert counts.startswith("3 stages: 3 ran in ")
    assert made == "test for dry-run is built: c.text (12 B)."
    assert figures == "c.text: size 12 B"
    assert changed == "This is the first recorded run of this pipeline."
    assert copy == "to copy one: deploy-runner get pipeline.yaml c.text"
    assert (chain.folder / report.removeprefix("report: ")).is_file()
    assert max(map(len, screen)) <= 80
    assert chain.cli(*shlex.split(copy)[4:]).stdout == "upper.txt\n"
    found = chain.cli("run", "a", "b").stdout.splitlines()[-2:]
    assert found == [
        "test for dry-run is unchanged: b.text (12 B).",
        "to copy one: deploy-runner get pipeline.yaml b.text",
    ]
    rows = [line.split() for line in chain.cli("get", "--list").stdout.splitlines()]
    assert [row[:4] for row in rows] == [["a.text", "file", "6", "B"], ["b.text", "file", "12", "B"]]
    (row,) = json.loads(chain.cli("get", "--list", "c", "--json").stdout)
    digest = hashlib.sha256((chain.folder / "upper.txt").read_bytes()).hexdigest()
    assert row == {"stage": "c", "output": "text", "kind": "file", "size": 12, "digest": digest}
    copied = json.loads(chain.cli("get", "c", "--to", "d", "--json").stdout)
    assert copied == {"path": "d", "kind": "file", "size": 12, "digest": digest}


def test_what_only_checks_and_pushes_read_is_a_result_and_more_than_two_are_counted(
    project: Project,
) -> None:
    project.write(
        "stages/look.py",
        """
        from deploy_runner.sdk import File, Output, Stage, StageInputs, StageOutputs
        class Look(Stage):
            "Judge a text."
            uses = "look"
            class Inputs(StageInputs):
                text: File
            class Outputs(StageOutputs):
                report: File = Output("report.json")
            def run(self, ctx, params, inputs, outputs):
                outputs.report.write_text("{}")
        """,
    )
    project.pipeline(
        """
        a: {uses: text.upper, matrix: {n: [1, 2, 3, 4, 5, 6]}, inputs: {text: in.txt}, with: {times: "${{ matrix.n }}"}}
        b: {uses: text.upper, inputs: {text: in.txt}}
        seen: {uses: look, inputs: {text: "${{ stages.b.outputs.text }}"}}
        """
    )
    lines = project.cli("run").stdout.splitlines()
    assert "test for dry-run is built: b.text (5 B), a[6].text (30 B) and 5 more." in lines
    assert "to list all: deploy-runner get pipeline.yaml --list" in lines


def test_explain_without_a_stage_explains_all_and_folds_what_is_alike(chain: Project) -> None:
    assert chain.cli("explain").stdout == "a: miss: not built before\nb, c: waits: for a\n"
    chain.run()
    assert chain.cli("explain").stdout == "a, b, c: hit: nothing changed\n"
    changed = ("--set", "stages.b.with.times=3")
    assert chain.cli("explain", *changed).stdout == (
        "a: hit: nothing changed\nb: miss: changed since the last run\n  `with.times` 2 → 3\nc: waits: for b\n"
    )
    rows = json.loads(chain.cli("explain", *changed, "--json").stdout)
    assert [(row["stage"], row["state"]) for row in rows] == [("a", "hit"), ("b", "miss"), ("c", "waits")]
    assert rows[2]["reason"] == "for b: `with.times` 2 → 3"


def test_cache_verify_finds_damage_and_gc_keeps_the_last_runs(chain: Project) -> None:
    chain.run()
    assert "all intact" in chain.cli("cache", "verify").stdout
    target = chain.objects()[0]
    target.chmod(0o644)
    target.write_bytes(b"X")
    assert "removed the damaged ones" in chain.cli("cache", "verify", exits=1).stdout
    chain.run()
    chain.run("--set", "stages.a.with.suffix=new")
    removed = json.loads(chain.cli("cache", "gc", "--keep-runs", "1", "--json").stdout)
    assert removed["objects"] == 2
    assert chain.run("--set", "stages.a.with.suffix=new")["hit"] == 3


def test_a_pinned_run_survives_gc(chain: Project) -> None:
    first = chain.run()["run"]
    assert chain.cli("cache", "pin").stdout == f"pinned {first}\n"
    chain.run("--set", "stages.a.with.suffix=new")
    chain.cli("cache", "gc", "--keep-runs", "1")
    assert chain.run()["hit"] == 3
    chain.cli("cache", "unpin", "--run", first)
    chain.run("--set", "stages.a.with.suffix=new")
    chain.cli("cache", "gc", "--keep-runs", "1")
    assert chain.run()["ran"] == 3


def test_doctor_says_what_is_missing_before_anything_runs(project: Project) -> None:
    project.pipeline('odd: {uses: text.odd, with: {secret: "${{ secrets.TOKEN }}"}}')
    said = project.cli("doctor", exits=1).stdout
    assert "FAIL secret TOKEN: not set, needed by odd at pipeline.yaml:4:3 (export TOKEN=…)" in said
    assert "FAIL" not in project.cli("doctor", TOKEN="abcd").stdout


def test_a_live_target_needs_credentials(project: Project) -> None:
    project.write("package.tar.gz", b"x")
    project.pipeline(
        "push: {uses: push.sagemaker, inputs: {package: package.tar.gz}, with: {endpoint: e, bucket: models, "
        "role_arn: 'arn:aws:iam::123456789012:role/r', image_uri: 'registry/pytorch-inference:2.5.1-cpu-py311'}}",
        head="target: {name: production, live: true, aws: {region: eu-central-1}}\n",
    )
    nowhere = {"HOME": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true"}
    error = project.run(exits=1, **nowhere)["stages"]["push"]["error"]
    assert error == "no AWS credentials were found (export AWS_PROFILE=…, or use OIDC in CI)"
    checked = project.cli("doctor", exits=1, **nowhere).stdout
    assert f"FAIL credentials of push.sagemaker: {error}" in checked
    advice = "the image pytorch-inference:2.5.1-cpu-py311 has had no security patches since 2025-10-29"
    assert f"note push: {advice}" in checked
    hidden = ("--set", "stages.push.with.bucket=${{ secrets.BUCKET }}")
    assert (
        f"note: {advice}"
        in project.cli("plan", "--set", "target.live=false", *hidden, BUCKET="models").stdout
    )


def test_json_errors_and_progress_stay_apart(chain: Project) -> None:
    done = chain.cli("run", "--json")
    assert len(done.stdout.splitlines()) == 1
    assert "3 stages: 3 ran" in done.stderr


def test_actions_get_groups_annotations_and_a_summary(project: Project, tmp_path: Path) -> None:
    project.pipeline(
        """
        good: {uses: text.odd, with: {how: log}}
        bad: {uses: text.odd, with: {how: gate}}
        """
    )
    summary = tmp_path / "summary.md"
    done = project.cli("run", exits=1, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary))
    assert "::group::good: log\nthe secret is \n::endgroup::" in done.stdout
    assert "::error file=pipeline.yaml,line=5,col=3::bad: 3 is more than 2" in done.stdout
    assert "| bad | failed |" in summary.read_text()
    project.pipeline("bad: {uses: text.od}")
    done = project.cli("run", exits=2, GITHUB_ACTIONS="true")
    assert "::error file=pipeline.yaml,line=4,col=15::there is no stage type 'text.od'" in done.stderr


def test_a_terminal_gets_colours_unless_no_color(chain: Project) -> None:
    def on_terminal(**env: str) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy_runner", "run"],
            cwd=chain.folder, stdout=theirs, stderr=theirs, env={**chain.env, "TERM": "xterm", **env},
        )  # fmt: skip
        os.close(theirs)
        data = b""
        try:
            while chunk := os.read(ours, 4096):
                data += chunk
        except OSError:  # The other end is closed.
            process.wait()
        os.close(ours)
        return data.decode()

    assert "\x1b[32m✓ a" in on_terminal()
    assert "\x1b[2m= a" in on_terminal()
    assert "\x1b[2m" not in on_terminal(NO_COLOR="1")


def test_the_report_is_one_page_that_escapes_what_it_shows(project: Project) -> None:
    project.pipeline('a: {uses: text.upper, inputs: {text: in.txt}, with: {suffix: "<script>"}}', head="")
    project.run()
    (page,) = (project.folder / ".deploy-runner/runs").rglob("report.html")
    text = page.read_text()
    assert "text.upper" in text
    assert "<script>" not in text


def test_the_python_api_has_the_same_verbs(chain: Project) -> None:
    import deploy_runner

    pipeline = deploy_runner.load(chain.folder / "pipeline.yaml", sets=["stages.b.with.times=4"])
    assert [a.state for a in deploy_runner.plan(pipeline).actions] == ["miss", "waits", "waits"]
    record = deploy_runner.run(pipeline, ["b"])
    assert record.exit_code == 0
    assert record.stages["b"]["state"] == "ran"
    assert deploy_runner.explain(pipeline, "b").state == "hit"


def test_files_named_like_modules_of_python_are_nothing_to_the_command(project: Project) -> None:
    for name in ("token", "signal", "json", "select"):
        project.write(f"{name}.py", "raise SystemExit('the user\\'s own')\n")
    done = subprocess.run(
        [sys.executable, "-m", "deploy_runner", "--version"],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
