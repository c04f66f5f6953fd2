"""A shared cache that fails, is configured wrongly, or is not configured: the run ends, and one line says why."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.conftest import Project
from tests.faults.proxy import Fault
from tests.machines import Bucket, Machines, Share

MADE = {"a": "ran", "b": "ran", "c": "ran"}
HITS = {"a": "hit", "b": "hit", "c": "hit"}
EVERY = 1 << 30

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def notes(text: str) -> list[str]:
    """Return the lines about the shared cache."""
    return [line for line in text.splitlines() if "shared cache" in line]


def stopped(machines: Machines) -> None:
    """Have the remote of the machines refuse every connection."""
    assert isinstance(machines.remote, Bucket)
    machines.remote.disturb(Fault("reset", times=EVERY))


# The remote fails ----------------------------------------------------------------------------


FAILURES = [
    pytest.param([Fault("reset", times=EVERY)], "", id="down"),
    pytest.param([Fault(500, times=EVERY)], "", id="broken"),
    pytest.param([Fault(403, times=EVERY, body=DENIED)], "permission is denied", id="denied"),
    pytest.param([Fault("stall", times=EVERY)], "it didn't answer in time", id="stalled"),
    pytest.param([Fault(404, times=EVERY)], "", id="empty"),
]


@pytest.mark.parametrize(("faults", "said"), FAILURES)
def test_a_run_ends_without_a_remote_that_fails_and_the_next_one_uses_it(
    s3_machines: Machines, bucket: Bucket, faults: list[Fault], said: str
) -> None:
    first = s3_machines.machine("first", timeout="1s")
    bucket.disturb(*faults)
    started_s = time.monotonic()
    done = first.cli("run")
    assert time.monotonic() - started_s < 20
    assert "3 ran" in done.stdout
    assert len(notes(done.stdout)) == 1, done.stdout
    assert all(said in note for note in notes(done.stdout)), done.stdout
    assert first.states() == HITS  # Nothing is lost.
    bucket.disturb()
    second = s3_machines.machine("second", timeout="1s")
    assert second.states() == MADE
    assert s3_machines.machine("third").states() == HITS


@pytest.mark.parametrize(("faults", "said"), FAILURES[:4])
def test_a_required_remote_that_fails_is_an_error_and_nothing_is_lost(
    s3_machines: Machines, bucket: Bucket, faults: list[Fault], said: str
) -> None:
    first = s3_machines.machine("first", timeout="1s", required=True)
    bucket.disturb(*faults)
    done = first.cli("run", exits=2 if "permission" in said else 1)  # A mistake, or an outage.
    assert said in done.stdout + done.stderr
    assert bucket.url in done.stdout + done.stderr
    bucket.disturb()
    assert first.states() == MADE
    bucket.disturb(*faults)
    assert first.states() == HITS  # What is here needs no remote.


@pytest.mark.parametrize("fault", [500, 403, "stall"])
def test_a_required_remote_that_can_not_be_written_is_an_error(
    s3_machines: Machines, bucket: Bucket, fault: int
) -> None:
    first = s3_machines.machine("first", timeout="1s", required=True)
    bucket.disturb(Fault(fault, "PUT", "/objects/", times=EVERY, body=DENIED if fault == 403 else b""))
    code = 2 if fault == 403 else 1
    first.cli("run", exits=code)
    record = json.loads(first.cli("show", "--json").stdout)
    assert record["exit_code"] == code
    assert bucket.names("records") == []
    assert first.states() == HITS


def test_who_may_not_write_reads_on(s3_machines: Machines, bucket: Bucket) -> None:
    s3_machines.machine("first").run()
    before = bucket.names()
    second = s3_machines.machine("second")
    second.write("in.txt", "other")
    bucket.disturb(Fault(403, "PUT|POST|DELETE", times=EVERY, body=DENIED))
    done = second.cli("run")
    assert "3 ran" in done.stdout
    (note,) = notes(done.stdout)
    assert "nothing more is written to the shared cache" in note
    assert "permission is denied (check the policy of the bucket" in note
    assert bucket.names() == before
    third = s3_machines.machine("third")
    assert third.states() == HITS


def test_who_may_not_delete_sends_all_the_same_and_says_nothing(
    s3_machines: Machines, bucket: Bucket
) -> None:
    bucket.disturb(Fault(403, "POST|DELETE", times=EVERY, body=DENIED))
    done = s3_machines.machine("first").cli("run")
    assert notes(done.stdout) == []
    assert s3_machines.machine("second").states() == HITS


def test_a_bucket_that_does_not_exist_is_one_line(s3_machines: Machines, bucket: Bucket) -> None:
    first = s3_machines.machine("first")
    done = first.cli("run", DEPLOY_RUNNER_REMOTE="s3://no-such-bucket/x")
    assert "3 ran" in done.stdout
    lines = notes(done.stdout)
    assert all("s3://no-such-bucket/x" in line and "the bucket doesn't exist" in line for line in lines)
    assert len(lines) == 1


def test_a_folder_that_does_not_exist_is_one_line(project: Project, tmp_path: object) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head="cache: {push: true}\n")
    url = f"file://{tmp_path}/nowhere"
    env = {"DEPLOY_RUNNER_REMOTE": url, "DEPLOY_RUNNER_CACHE_KEY": "s" * 32}
    done = project.cli("run", **env)
    lines = notes(done.stdout)
    assert len(lines) == 1
    assert all(f"{url} can't be opened: the folder doesn't exist" in line for line in lines)


def test_a_file_in_the_place_of_a_folder_is_one_line(project: Project) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head="cache: {push: true}\n")
    url = f"file://{project.folder}/in.txt"
    done = project.cli("run", DEPLOY_RUNNER_REMOTE=url, DEPLOY_RUNNER_CACHE_KEY="s" * 32)
    (line,) = notes(done.stdout)
    assert line.endswith("a part of its path is a file (correct cache.remote)")
    assert "1 ran" in done.stdout


def test_a_remote_that_goes_in_the_middle_of_a_run_costs_what_is_missing(
    s3_machines: Machines, bucket: Bucket
) -> None:
    """Hits whose bytes don't come are made again."""
    s3_machines.machine("first").run()
    second = s3_machines.machine("second", timeout="1s")
    yaml = (second.folder / "pipeline.yaml").read_text()
    second.write("pipeline.yaml", yaml.replace("cat ", "echo more; cat "))
    bucket.disturb(Fault("reset", "GET", "/objects/", times=EVERY))
    run = second.run()
    assert {k: v["state"] for k, v in run["stages"].items()} == {"a": "healed", "b": "healed", "c": "ran"}


# Configuration -------------------------------------------------------------------------------


def test_the_remote_is_configured_by_the_environment_and_by_overlays(
    tmp_path: object, project: Project
) -> None:
    share = Share(project.folder.parent / "share")
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    key = {"DEPLOY_RUNNER_CACHE_KEY": "s" * 32}
    overlay = project.write("configs/team.yaml", f"cache: {{remote: '{share.url}', push: true}}\n")

    def forget() -> None:
        subprocess.run(["rm", "-rf", str(project.folder / ".deploy-runner")], check=True)

    assert project.states(DEPLOY_RUNNER_REMOTE=share.url, **key) == {"a": "ran"}
    assert share.names() == []  # The default is to read only.
    forget()
    assert project.states("--config", str(overlay), **key) == {"a": "ran"}
    assert len(share.names("records")) == 1
    forget()
    assert project.states(DEPLOY_RUNNER_REMOTE=share.url, **key) == {"a": "hit"}
    forget()
    assert project.states("--config", str(overlay), DEPLOY_RUNNER_REMOTE="", **key) == {"a": "ran"}
    forget()
    assert project.states("--config", str(overlay), "--set", "cache.remote=", **key) == {"a": "ran"}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "cache: {remote: http://x/y}",
            "pipeline.yaml:3:17: .*it is not s3://…, gs://…, az://… or file:///…",
        ),
        ("cache: {remotes: s3://b/p}", "pipeline.yaml:3:9: .*did you mean 'remote'"),
        ("cache: {remote: s3://b/p, push: maybe}", r"pipeline.yaml:3:33: "),
        ("cache: {remote: s3://b/p, timeout: soon}", r"pipeline.yaml:3:36: "),
        ("cache: {remote: s3://b/p, timeout: 0}", r"pipeline.yaml:3:36: .*more than 0"),
        ("cache: {public_keys: [ed25519:abc]}", r"pipeline.yaml:3:2\d: .*'ed25519:abc' is not a key"),
        ("cache: s3://b/p", r"pipeline.yaml:3:8: "),
    ],
)
def test_a_wrong_value_is_said_with_its_place(project: Project, head: str, message: str) -> None:
    import re

    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}", head=f"{head}\n")
    done = project.cli("run", exits=2)
    assert re.search(message, done.stderr), done.stderr
    assert not (project.folder / ".deploy-runner").exists()


@pytest.mark.parametrize("url", ["http://x/y", "s3://", "share", "file://"])
def test_a_wrong_address_in_the_environment_is_said(project: Project, url: str) -> None:
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    done = project.cli("run", exits=2, DEPLOY_RUNNER_REMOTE=url)
    assert f"'{url}' is not an address of a shared cache (use s3://" in done.stderr


def test_a_no_op_run_imports_no_client_and_no_cryptography(s3_machines: Machines, bucket: Bucket) -> None:
    first = s3_machines.machine("first")
    first.run()
    code = (
        "import sys; from deploy_runner.cli import main\n"
        "try: main(['run'])\nexcept SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=first.folder,
        env=first.env,
        capture_output=True,
        text=True,
        check=True,
    )
    found = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "3 hit" in done.stdout
    assert not found & {"obstore", "cryptography", "boto3", "botocore", "torch"}
