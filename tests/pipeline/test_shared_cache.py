"""A cache that machines share: what one has made, the others hit, and bytes come when something needs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.machines import SECRET, Bucket, Machines, Share, public_key, quickly_in_s3

MADE = {"a": "ran", "b": "ran", "c": "ran"}
HITS = {"a": "hit", "b": "hit", "c": "hit"}


def outputs(project: Project, *args: str, **env: str) -> dict[str, dict[str, str]]:
    return {k: v["outputs"] for k, v in project.run(*args, **env)["stages"].items()}


def object_name(digest: str) -> str:
    return digest[2:]


def change_c(project: Project) -> None:
    """Have a machine need what `b` made, which another machine did."""
    yaml = (project.folder / "pipeline.yaml").read_text()
    project.write("pipeline.yaml", yaml.replace("cat ", "echo more; cat "))


def reasons(project: Project, **env: str) -> dict[str, str]:
    return {k: v.get("reason", "") for k, v in project.run(**env)["stages"].items()}


def no_objects(project: Project) -> bool:
    return project.objects() == []


@pytest.fixture
def in_folder(tmp_path: Path) -> Machines:
    """Machines that share a folder, where it makes no difference what they share."""
    return Machines(tmp_path, Share(tmp_path / "share"))


# Hits ----------------------------------------------------------------------------------------


def test_a_second_machine_hits_everything_and_downloads_no_object(machines: Machines) -> None:
    first, second = machines.machine("first"), machines.machine("second")
    made = first.run()
    assert {k: v["state"] for k, v in made["stages"].items()} == MADE
    found = second.run()
    assert {k: v["state"] for k, v in found["stages"].items()} == HITS
    for name, stage in made["stages"].items():
        assert found["stages"][name]["outputs"] == stage["outputs"]
        assert found["stages"][name]["figures"] == stage["figures"]
    assert no_objects(second)
    assert second.states() == HITS


def test_a_hit_is_one_request_and_the_next_run_has_none(s3_machines: Machines, bucket: Bucket) -> None:
    first, second = s3_machines.machine("first"), s3_machines.machine("second", push=False)
    first.run()
    bucket.disturb()
    assert second.states() == HITS
    assert [r.method for r in bucket.proxy.requests] == ["GET"] * 3
    assert all("/records/" in r.path for r in bucket.proxy.requests)
    bucket.disturb()
    assert second.states() == HITS
    assert bucket.proxy.requests == []


def test_a_wide_graph_is_one_request_a_stage(s3_machines: Machines, bucket: Bucket) -> None:
    stages = "\n".join(
        f"s{n}: {{uses: text.upper, inputs: {{text: in.txt}}, with: {{suffix: '{n}'}}}}" for n in range(40)
    )
    s3_machines.machine("first", stages).run()
    bucket.disturb()
    assert set(s3_machines.machine("second", stages).states().values()) == {"hit"}
    assert len(bucket.proxy.requests) == 40


def test_inputs_come_when_a_worker_needs_them_and_nothing_else(machines: Machines) -> None:
    first, second = machines.machine("first"), machines.machine("second")
    expected = outputs(first)
    change_c(second)
    run = second.run()
    assert {k: v["state"] for k, v in run["stages"].items()} == {**HITS, "c": "ran"}
    assert run["stages"]["b"]["outputs"] == expected["b"]
    assert object_name(expected["a"]["text"]) not in {path.name for path in second.objects()}


def test_the_bytes_are_those_of_a_run_alone(machines: Machines, tmp_path: Path) -> None:
    first, second = machines.machine("first"), machines.machine("second")
    first.run()
    change_c(second)
    second.run()
    alone = machines.machine("alone")
    change_c(alone)
    alone.run(DEPLOY_RUNNER_REMOTE="")
    for name in ("b.folder", "b.text", "c.o"):
        places = []
        for project in (second, alone):
            place = tmp_path / f"{project.folder.name}-{name}"
            project.cli("get", name, "--to", str(place))
            files = sorted(p for p in [place, *place.rglob("*")] if p.is_file())
            places.append([(p.relative_to(place), p.stat().st_mode, p.read_bytes()) for p in files])
        assert places[0] == places[1]


# Writing -------------------------------------------------------------------------------------


def test_objects_come_before_the_record_that_names_them(s3_machines: Machines, bucket: Bucket) -> None:
    s3_machines.machine("first").run()
    assert bucket.names("leases") == bucket.names("holders") == []
    puts = [r.path.rpartition("/v1/")[2] for r in bucket.asked("PUT") if "/lease" not in r.path]
    for name in bucket.names("records"):
        record = json.loads(bucket.read(name).partition(b"\n")[2])
        sent = puts[: puts.index(name)]
        for digest, _, _ in record["outputs"].values():
            assert f"objects/{digest[:2]}/{digest[2:]}" in sent


def test_nothing_is_sent_that_exists(s3_machines: Machines, bucket: Bucket) -> None:
    first, second = s3_machines.machine("first"), s3_machines.machine("second")
    first.run()
    objects = bucket.names("objects")
    bucket.remove("records")
    bucket.disturb()
    assert second.states() == MADE
    assert bucket.asked("PUT", "objects") == []
    assert bucket.names("objects") == objects
    bucket.disturb()
    assert second.states("--force", "pipeline.yaml", "c")["c"] == "ran"
    assert bucket.asked("PUT", "objects") == []


def test_a_machine_that_only_reads_writes_nothing(in_folder: Machines) -> None:
    reader = in_folder.machine("reader", push=False)
    assert reader.states() == MADE
    assert in_folder.remote.names() == []


def test_a_pull_request_reads_and_never_writes(in_folder: Machines) -> None:
    in_folder.machine("first").run()
    before = in_folder.remote.names()
    pull = {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/7/merge"}
    other = in_folder.machine("other")
    assert other.states(**pull) == HITS
    change_c(other)
    assert other.states(**pull) == {**HITS, "c": "ran"}
    assert in_folder.remote.names() == before


# Trust ---------------------------------------------------------------------------------------


def test_a_public_key_suffices_to_read(in_folder: Machines) -> None:
    in_folder.machine("first").run()
    reader = in_folder.machine("reader", secret="", push=False, keys=[public_key()])
    assert reader.states() == HITS


def test_without_any_key_nothing_is_trusted_and_that_is_said(in_folder: Machines) -> None:
    in_folder.machine("first").run()
    done = in_folder.machine("reader", secret="", push=False).cli("run")
    assert "3 ran" in done.stdout
    assert done.stdout.count("can be trusted: no public key is configured") == 1
    assert "set cache.public_keys, or DEPLOY_RUNNER_CACHE_KEY" in done.stdout


def test_too_short_a_secret_signs_nothing_and_that_is_said(in_folder: Machines) -> None:
    in_folder.machine("first").run()
    before = in_folder.remote.names()
    short = in_folder.machine("short", secret="x" * 31, keys=[public_key()])
    change_c(short)
    done = short.cli("run")
    assert "1 ran" in done.stdout
    assert done.stdout.count("DEPLOY_RUNNER_CACHE_KEY is too short") == 1
    assert in_folder.remote.names() == before
    alone = in_folder.machine("alone", secret="x" * 31).cli("run")
    assert "DEPLOY_RUNNER_CACHE_KEY is too short" in alone.stdout
    assert "no public key is configured" not in alone.stdout


REFUSED = "its action record in the shared cache is not signed by a trusted key"


def test_a_record_that_another_key_signed_is_a_miss_with_the_reason(in_folder: Machines) -> None:
    in_folder.machine("first", secret="another secret of 32 characters or more").run()
    second = in_folder.machine("second")
    run = second.run()
    assert {v["state"] for v in run["stages"].values()} == {"ran"}
    assert {v["reason"] for v in run["stages"].values()} == {REFUSED}
    assert in_folder.machine("third").states() == HITS  # The right one has replaced it.


def alter(remote: Share, how: str) -> None:
    """Change the three records of the chain."""
    from deploy_runner.store.signatures import Signatures

    names = remote.names("records")
    texts = [remote.read(name) for name in names]
    signatures = Signatures([], {"DEPLOY_RUNNER_CACHE_KEY": SECRET})
    for index, (name, text) in enumerate(zip(names, texts, strict=True)):
        key = re.sub(r"records/|/|\.json", "", name)
        body = text.partition(b"\n")[2]
        changed = {
            "altered": text.replace(b'"seconds":', b'"seconds":1'),
            "cut": text[:-1],
            "without a signature": body,
            "empty": b"",
            "of another name": texts[index - 1],
            "of another kind": signatures.signed(body, "run", key),
            "without a record": signatures.signed(b"[]", "action", key),
        }
        remote.write(name, changed[how])


@pytest.mark.parametrize(
    "how", ["altered", "cut", "without a signature", "empty", "of another name", "of another kind"]
)
def test_a_record_that_is_not_as_it_was_signed_is_a_miss_with_the_reason(
    in_folder: Machines, how: str
) -> None:
    expected = outputs(in_folder.machine("first"))
    alter(in_folder.remote, how)
    second = in_folder.machine("second")
    run = second.run()
    assert {v["state"] for v in run["stages"].values()} == {"ran"}
    assert {v["reason"] for v in run["stages"].values()} == {REFUSED}
    assert {k: v["outputs"] for k, v in run["stages"].items()} == expected
    assert in_folder.machine("third").states() == HITS


def test_a_signed_text_that_is_no_record_is_a_miss(in_folder: Machines) -> None:
    in_folder.machine("first").run()
    alter(in_folder.remote, "without a record")
    assert in_folder.machine("second").states() == MADE


# Healing -------------------------------------------------------------------------------------


def wrong(remote: Share) -> None:
    """Give every object other bytes of the same length."""
    for name in remote.names("objects"):
        remote.write(name, bytes(len(remote.read(name))))


@quickly_in_s3
@pytest.mark.parametrize("how", ["gone", "wrong", "short"])
def test_objects_that_are_gone_or_wrong_are_made_again_also_those_that_these_need(
    machines: Machines, how: str
) -> None:
    """Nothing of `a`, `b` or `c` is right: a changed `c` needs `b`, which needs `a`."""
    remote, first = machines.remote, machines.machine("first")
    first.run()
    if how == "gone":
        remote.remove("objects")
    elif how == "wrong":
        wrong(remote)
    else:
        for name in remote.names("objects"):
            remote.write(name, remote.read(name)[:-1])
    second = machines.machine("second")
    change_c(second)
    run = second.run()
    assert {k: v["state"] for k, v in run["stages"].items()} == {"a": "healed", "b": "healed", "c": "ran"}
    alone = machines.machine("alone")
    change_c(alone)
    assert {k: v["outputs"] for k, v in run["stages"].items()} == outputs(alone, DEPLOY_RUNNER_REMOTE="")
    third = machines.machine("third")
    change_c(third)
    assert third.states() == HITS
    yaml = (third.folder / "pipeline.yaml").read_text()
    third.write("pipeline.yaml", yaml.replace("echo more", "echo else"))
    assert third.states() == {**HITS, "c": "ran"}  # The remote was healed, too.


def test_a_required_cache_heals_too(in_folder: Machines) -> None:
    in_folder.machine("first").run()
    wrong(in_folder.remote)
    second = in_folder.machine("second", required=True)
    change_c(second)
    assert second.states() == {"a": "healed", "b": "healed", "c": "ran"}


@pytest.mark.parametrize("damage", ["damaged", "removed"])
def test_what_is_lost_here_comes_from_there(machines: Machines, damage: str) -> None:
    """Files and manifests; a record that was made here has its objects there."""
    first = machines.machine("first")
    expected = outputs(first)
    for path in first.objects():
        path.unlink()
        if damage == "damaged":
            path.write_bytes(b"?")
    assert first.states() == HITS
    change_c(first)
    run = first.run()
    assert {k: v["state"] for k, v in run["stages"].items()} == {**HITS, "c": "ran"}
    assert run["stages"]["b"]["outputs"] == expected["b"]
