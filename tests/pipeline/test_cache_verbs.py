"""`cache status`, `push`, `pull`, `verify --remote` and `gc --remote` on a real S3 and on a folder."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.store.signatures import Signatures
from tests.conftest import Project
from tests.machines import SECRET, Bucket, Share, machine, objects

STEPS = """
def folder(ctx, inputs, outputs):
    for n in range(20):
        (outputs["made"] / "sub dir").mkdir(parents=True, exist_ok=True)
        (outputs["made"] / "sub dir" / f"{n} größe.txt").write_text("x" * n)

def large(ctx, inputs, outputs):
    outputs["made"].write_bytes(bytes(20 << 20) + b"end")
"""
STAGES = """
a: {uses: text.upper, inputs: {text: in.txt}}
b: {uses: text.upper, inputs: {text: "${{ stages.a.outputs.text }}"}, with: {times: 2}}
parts: {uses: run.python, with: {function: "steps.py:folder"}, outputs: {made: "alle Teile/"}}
"""
OTHER = "another secret that signs records, of another team"


@pytest.fixture
def project(project: Project) -> Project:
    """Three stages, one of which makes a folder."""
    project.write("steps.py", STEPS)
    project.pipeline(STAGES)
    return project


def ask(project: Project, *args: str, exits: Any = 0, **env: str) -> dict[str, Any]:
    """Run an action of `cache` and return its JSON."""
    found: dict[str, Any] = json.loads(project.cli("cache", *args, "--json", exits=exits, **env).stdout)
    return found


def record_of(project: Project, stage: str, env: dict[str, str]) -> str:
    """Return the name of a stage's record in the shared cache."""
    key = project.run(**env)["stages"][stage]["key"]
    return f"records/{key[:2]}/{key[2:]}.json"


def offline(env: dict[str, str]) -> dict[str, str]:
    """Return the environment of a machine that reaches no remote."""
    return {**env, "DEPLOY_RUNNER_REMOTE": "s3://gone/at", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}  # fmt: skip


def test_push_sends_what_was_built_here_and_nothing_twice(project: Project, shared: Share) -> None:
    one, two = machine(project, shared, "one"), machine(project, shared, "two")
    project.run(**one)
    assert not shared.names()
    sent = ask(project, "push", **one)
    assert (sent["records"], sent["objects"], sent["known"], sent["left"]) == (3, 23, 0, 0)
    assert len(shared.names("objects")) == 23
    assert len(shared.names("records")) == 3
    again = ask(project, "push", **one)
    assert (again["records"], again["objects"], again["known"]) == (0, 0, 3)
    assert project.states(**two) == {"a": "hit", "b": "hit", "parts": "hit"}
    # What came from there is not what was built here: it is never sent, even where it is lacking.
    ask(project, "pull", **two)
    shared.remove(shared.names("records")[0])
    assert ask(project, "push", **two)["records"] == 0
    assert (ask(project, "push", **one)["records"], len(shared.names("records"))) == (1, 3)


def test_push_sends_an_object_only_where_it_is_missing(project: Project, shared: Share) -> None:
    one = machine(project, shared, "one")
    project.run(**one)
    ask(project, "push", **one)
    for name in shared.names("records"):
        shared.remove(name)
    gone = shared.names("objects")[7]
    shared.remove(gone)
    sent = ask(project, "push", **one)
    assert (sent["records"], sent["objects"]) == (3, 1)
    assert gone in shared.names("objects")


def test_push_leaves_out_a_record_whose_objects_are_damaged(project: Project, shared: Share) -> None:
    one = machine(project, shared, "one")
    project.run(**one)
    (path,) = (p for p in objects(one) if p.read_bytes() == b"HELLOHELLO")
    path.chmod(0o644)
    path.write_bytes(b"HELLOHELLA")
    done = project.cli("cache", "push", **one)
    assert done.stdout.splitlines() == [
        "sent 2 action records and 22 objects (2,776 bytes); 0 existed there",
        "objects of 1 record are lost: run again to rebuild them",
    ]
    assert len(shared.names("records")) == 2
    assert project.states(**one)["b"] == "healed"
    assert ask(project, "push", **one)["records"] == 1


def test_push_says_what_is_left_when_the_remote_fails_midway(project: Project, share: Share) -> None:
    """The folder for one record can't be made: a file has its name."""
    one = machine(project, share, "one")
    shard = Path(record_of(project, "b", one)).parent.as_posix()
    share.write(shard, b"in the way")
    done = project.cli("cache", "push", exits=2, **one)
    first, second = done.stdout.splitlines()
    assert first.startswith("sent ")
    assert re.match(r"left [1-9]\d* records?: file://", second)
    share.remove(shard)
    project.cli("cache", "push", **one)
    assert len(share.names("records")) == 3


def test_a_large_object_goes_in_parts_and_comes_back(project: Project, bucket: Bucket) -> None:
    project.pipeline(
        'large: {uses: run.python, with: {function: "steps.py:large"}, outputs: {made: big.bin}}'
    )
    one, two = machine(project, bucket, "one"), machine(project, bucket, "two")
    project.run(**one)
    assert ask(project, "push", **one)["bytes"] == (20 << 20) + 3
    assert ask(project, "pull", **two)["bytes"] == (20 << 20) + 3
    assert ask(project, "verify", "--remote", **two)["ok"]
    assert project.output("large", **offline(two)).endswith(b"\0end")


def test_pull_brings_everything_to_work_offline(project: Project, shared: Share) -> None:
    one, two = machine(project, shared, "one"), machine(project, shared, "two")
    project.run(**one)
    ask(project, "push", **one)
    some = ask(project, "pull", "pipeline.yaml", "b", **two)
    assert some == {"stages": 2, "artifacts": 2, "bytes": 15, "lost": [], "to_run": []}
    assert len(objects(two)) == 2
    rest = ask(project, "pull", **two)
    assert (rest["stages"], rest["artifacts"], rest["bytes"]) == (3, 1, 190)
    assert len(objects(two)) == 23
    assert ask(project, "pull", **two)["artifacts"] == 0
    assert project.states(**offline(two)) == {"a": "hit", "b": "hit", "parts": "hit"}
    assert project.output("b", **offline(two)) == b"HELLOHELLO"


def test_pull_says_what_has_to_run_and_what_has_expired(project: Project, shared: Share) -> None:
    one, two = machine(project, shared, "one"), machine(project, shared, "two")
    project.run(**one)
    ask(project, "push", **one)
    for name in shared.names("objects")[::2]:
        shared.remove(name)
    shared.remove(record_of(project, "a", one))
    done = project.cli("cache", "pull", exits=1, **two)
    assert "to run: 2 stages: a, b" in done.stdout
    assert "parts.made is not in the shared cache any more: the next run rebuilds it" in done.stdout
    assert project.states(**two) == {"a": "ran", "b": "hit", "parts": "healed"}
    assert len(list((Path(two["DEPLOY_RUNNER_HOME"]) / "cas").rglob("*"))) > 20


def test_verify_finds_and_removes_what_is_wrong(project: Project, shared: Share) -> None:
    one, two = machine(project, shared, "one"), machine(project, shared, "two")
    project.run(**one)
    ask(project, "push", **one)
    assert ask(project, "verify", "--remote", **one)["ok"]
    objects_ = shared.names("objects")
    damaged = next(name for name in objects_ if shared.read(name) == b"HELLO")
    shared.write(damaged, b"HELLA")
    expired = next(name for name in objects_ if shared.read(name) == b"x" * 7)
    shared.remove(expired)
    other = record_of(project, "b", one)
    key = "".join(other.split("/")[1:]).removesuffix(".json")
    forger = Signatures([], {"DEPLOY_RUNNER_CACHE_KEY": OTHER})
    body = shared.read(other)[129:]
    shared.write(other, forger.signed(body, "action", key))
    found = ask(project, "verify", "--remote", exits=1, **two)
    assert found["damaged"] == ["".join(damaged.split("/")[1:])]
    assert found["untrusted_records"] == [key]
    assert len(found["incomplete_records"]) == 2
    assert (found["objects"], found["records"], found["kept_because"]) == (22, 3, "")
    assert damaged not in shared.names()
    assert not shared.names("records")
    assert ask(project, "verify", "--remote", **two)["ok"]
    assert ask(project, "push", **one)["records"] == 3
    assert ask(project, "verify", "--remote", **two)["ok"]


def test_verify_lists_what_is_wrong_where_it_may_not_remove_it(project: Project, share: Share) -> None:
    one = machine(project, share, "one")
    project.run(**one)
    public = ask(project, "status", **one)["remote"]["public_key"]
    project.pipeline(STAGES, head=f"cache: {{public_keys: ['{public}']}}\n")
    ask(project, "push", **one)
    damaged = share.names("objects")[0]
    share.write(damaged, b"other bytes")
    two = {**machine(project, share, "two"), "DEPLOY_RUNNER_CACHE_KEY": ""}
    said = project.cli("cache", "verify", "--remote", exits=1, **two).stdout
    assert ": nothing that is wrong was removed: DEPLOY_RUNNER_CACHE_KEY is not set (" in said
    assert f"  object {''.join(damaged.split('/')[1:])} is damaged" in said
    assert damaged in share.names()
    pull_request = {**one, "GITHUB_EVENT_NAME": "pull_request"}
    assert (
        "a pull request only reads it"
        in project.cli("cache", "verify", "--remote", exits=1, **pull_request).stdout
    )
    assert damaged in share.names()


def test_gc_removes_old_records_unnamed_objects_and_stale_leases(project: Project, share: Share) -> None:
    one = machine(project, share, "one")
    project.run(**one)
    ask(project, "push", **one)
    unnamed, young = f"objects/ab/{'c' * 62}", f"objects/ab/{'d' * 62}"
    for name in (unnamed, young, "leases/stale", "holders/stale", "leases/live"):
        share.write(name, b"x")
    old = record_of(project, "parts", one)
    for name in share.names():
        if name not in (young, "leases/live"):
            share.age(name, 2)
    share.age(old, 29)
    before = share.names()
    planned = ask(project, "gc", "--remote", "--dry-run", **one)
    assert share.names() == before
    done = ask(project, "gc", "--remote", **one)
    assert planned == {**done, "dry_run": True}
    assert {k: done[k] for k in ("records", "objects", "leases", "kept_records", "kept_objects")} == {
        "records": 1, "objects": 22, "leases": 2, "kept_records": 2, "kept_objects": 3,
    }  # fmt: skip
    left = share.names()
    assert not {unnamed, old, "leases/stale", "holders/stale"} & set(left)
    assert {young, "leases/live"} < set(left)
    assert project.states(**machine(project, share, "two")) == {"a": "hit", "b": "hit", "parts": "ran"}
    assert ask(project, "gc", "--remote", "--keep-days", "1", **one)["records"] == 2


def test_gc_keeps_what_records_of_another_key_name(project: Project, share: Share) -> None:
    one, two = machine(project, share, "one"), machine(project, share, "two")
    two["DEPLOY_RUNNER_CACHE_KEY"] = OTHER
    project.run(**one)
    ask(project, "push", **one)
    for name in share.names():
        share.age(name, 2)
    assert ask(project, "gc", "--remote", **two)["objects"] == 0
    # Whatever somebody writes there, it is no more than a name.
    (text,) = (name for name in share.names("objects") if share.read(name) == b"HELLO")
    outputs = {
        "a": ["".join(text.split("/")[1:]), "folder", 1],
        "b": [["x"], "folder", 1],
        "c": ["../x", "file", 1],
    }
    record = {"uses": "x", "outputs": outputs, "figures": {}, "preimage": {}, "seconds": 1}
    forged, *others = share.names("records")
    share.write(forged, b"x" * 129 + json.dumps(record).encode())
    for name in others:
        share.write(name, b"not even JSON")
    assert ask(project, "gc", "--remote", **two)["objects"] == 22
    assert share.names("objects") == [text]


def test_gc_on_a_bucket_keeps_what_is_young(project: Project, bucket: Bucket) -> None:
    one = machine(project, bucket, "one")
    project.run(**one)
    ask(project, "push", **one)
    bucket.write(f"objects/ab/{'c' * 62}", b"x")
    before = bucket.names()
    assert str(project.cli("cache", "gc", "--remote", **one).stdout) == (
        "removed 0 action records, 0 objects (0 bytes) and 0 stale leases; kept 3 records and 24 objects\n"
    )
    assert bucket.names() == before


def test_status_says_where_outputs_are_and_what_works(project: Project, shared: Share) -> None:
    project.pipeline(STAGES, head="cache: {push: true}\n")
    one, two = machine(project, shared, "one"), machine(project, shared, "two")
    project.run("pipeline.yaml", "a", **one)
    key = Signatures([], {"DEPLOY_RUNNER_CACHE_KEY": SECRET}).public_key
    found = ask(project, "status", **one)
    remote = {
        "url": shared.url,
        "reads": "",
        "writes": "",
        "public_key": key,
    }
    assert found["remote"] == {**remote, "trusted_keys": [key]}
    assert found["stages"] == {"a": "here and shared", "parts": "nowhere", "b": "nowhere"}
    assert {k: found["local"][k] for k in ("objects", "bytes", "records", "runs", "pinned")} == {
        "objects": 1, "bytes": 5, "records": 1, "runs": 1, "pinned": 0,
    }  # fmt: skip
    assert not shared.names("holders")
    assert ask(project, "status", **two)["stages"]["a"] == "shared"
    project.run("pipeline.yaml", "b", **{**one, "DEPLOY_RUNNER_REMOTE": ""})
    project.pipeline(STAGES, head=f"cache: {{push: true, public_keys: ['{key}']}}\n")
    said = project.cli("cache", "status", **{**one, "DEPLOY_RUNNER_CACHE_KEY": "short"}).stdout
    assert "read: yes\n  write: no: DEPLOY_RUNNER_CACHE_KEY is too short" in said


def refusals(project: Project, exits: Any, sentence: str, *verbs: str, **env: str) -> None:
    """Assert that each verb ends with this sentence alone."""
    for verb in verbs:
        done = project.cli("cache", *verb.split(), exits=exits, **env)
        assert sentence in done.stderr
        assert (done.stdout, len(done.stderr.splitlines())) == ("", 1), done.stderr


REMOTE_VERBS = ("push", "pull", "verify --remote", "gc --remote")


def test_what_is_wrongly_configured_is_said_with_exit_2(project: Project, bucket: Bucket) -> None:
    one = machine(project, bucket, "one")
    refusals(project, 2, "no shared cache is configured (set cache.remote", *REMOTE_VERBS)
    missing = {**one, "DEPLOY_RUNNER_REMOTE": "s3://no-such-bucket/at"}
    refusals(
        project, 2, "the bucket doesn't exist (create it, or correct cache.remote)", *REMOTE_VERBS, **missing
    )
    unsigned = {**one, "DEPLOY_RUNNER_CACHE_KEY": ""}
    refusals(
        project, 2, "DEPLOY_RUNNER_CACHE_KEY is not set (set 32 characters", "push", "gc --remote", **unsigned
    )
    refusals(project, 2, "no public key is configured", "pull", "verify --remote", **unsigned)
    pull_request = {**one, "GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/7/merge"}
    refusals(project, 2, "a pull request only reads it", "push", "gc --remote", **pull_request)
    status = project.cli("cache", "status", exits=2, **missing)
    assert "read: no: s3://no-such-bucket/at can't be read: the bucket doesn't exist" in status.stdout


def test_a_remote_that_is_down_is_said_with_exit_1(project: Project, bucket: Bucket) -> None:
    project.pipeline(STAGES, head="cache: {timeout: 1s, required: true}\n")
    one = {**machine(project, bucket, "one"), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    refusals(project, 1, "it can't be reached", *REMOTE_VERBS, **one)
    assert "read: no: " in project.cli("cache", "status", exits=1, **one).stdout
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stalled = {**one, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        refusals(project, 1, "it didn't answer in time (raise cache.timeout)", "pull", **stalled)


def test_options_that_an_action_does_not_have_are_refused(project: Project) -> None:
    refusals(project, 2, "--dry-run is for gc", "verify --dry-run", "push --dry-run")
    refusals(project, 2, "--keep-days is for gc --remote", "gc --keep-days 3", "verify --keep-days 3")
    refusals(project, 2, "--keep-runs is for gc of the local store", "gc --remote --keep-runs 3")
    refusals(project, 2, "the name of a stage is for pull", "push pipeline.yaml a", "verify pipeline.yaml a")
    refusals(project, 2, "--remote is for verify and gc", "push --remote")


def test_the_local_actions_do_not_compile_the_pipeline(project: Project) -> None:
    project.run()
    project.write("pipeline.yaml", "stages: [no pipeline")
    project.cli("cache", "verify")
    project.cli("cache", "gc")
    project.cli("cache", "status", exits=2)
