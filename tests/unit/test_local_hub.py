"""The local Hub answers the real huggingface_hub client as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.local.hub import Account, LocalHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with LocalHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def api(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import huggingface_hub.constants as constants
    from huggingface_hub import HfApi

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    found = HfApi(endpoint=hub.url, token="hf_any")
    found.create_repo("me/model")
    return found


def add(path: str, data: bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, data)


def test_a_commit_of_small_and_large_files_is_read_back(api: Any, tmp_path: Path) -> None:
    large = os.urandom(70_000_000)  # Above the size from which parts are used.
    files = {"README.md": b"---\nlicense: mit\n---\n", "a/w.safetensors": b"weights", "big.bin": large}
    made = api.create_commit("me/model", [add(p, d) for p, d in files.items()], commit_message="first")
    assert sorted(api.list_repo_files("me/model")) == sorted(files)
    for path, data in files.items():
        found = Path(api.hf_hub_download("me/model", path, local_dir=tmp_path / "d"))
        assert found.read_bytes() == data
    info = {i.path: i for i in api.get_paths_info("me/model", list(files))}
    assert info["big.bin"].lfs.sha256 == hashlib.sha256(large).hexdigest()
    assert info["README.md"].lfs is None
    assert api.list_repo_commits("me/model")[0].commit_id == made.oid


def test_a_commit_whose_parent_has_moved_is_refused(api: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    parent = api.repo_info("me/model").sha
    api.create_commit("me/model", [add("a", b"1")], commit_message="one", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="412") as error:
        api.create_commit("me/model", [add("a", b"2")], commit_message="two", parent_commit=parent)
    assert "A commit has happened since" in str(error.value)
    assert len(api.list_repo_commits("me/model")) == 2


def test_a_commit_is_all_or_nothing(hub: LocalHub, api: Any) -> None:
    before = api.repo_info("me/model").sha
    lines = [
        {"key": "header", "value": {"summary": "s"}},
        {"key": "file", "value": {"path": "a", "content": "MQ==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "b", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    request = urllib.request.Request(
        f"{hub.url}/api/models/me/model/commit/main", data=body, headers={"Authorization": "Bearer x"}
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert api.repo_info("me/model").sha == before


def test_branches_tags_and_pull_requests(api: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    api.create_commit("me/model", [add("a", b"1")], commit_message="one")
    api.create_tag("me/model", tag="v1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("me/model", tag="v1")
    api.create_branch("me/model", branch="dev")
    api.create_commit("me/model", [add("b", b"2")], commit_message="two", revision="dev")
    assert api.list_repo_files("me/model") == ["a"]
    assert api.list_repo_files("me/model", revision="dev") == ["a", "b"]
    pull = api.create_commit("me/model", [add("c", b"3")], commit_message="three", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    assert api.list_repo_files("me/model", revision="refs/pr/1") == ["a", "c"]
    api.delete_tag("me/model", tag="v1")
    assert not api.list_repo_refs("me/model").tags


def test_deleting_files_and_repositories(api: Any) -> None:
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import RepositoryNotFoundError

    api.create_commit("me/model", [add("a", b"1"), add("d/b", b"2")], commit_message="one")
    api.create_commit("me/model", [CommitOperationDelete("d/", is_folder=True)], commit_message="two")
    assert api.list_repo_files("me/model") == ["a"]
    api.delete_repo("me/model")
    with pytest.raises(RepositoryNotFoundError, match="Repository Not Found for url: .*/models/me/model"):
        api.repo_info("me/model")


def test_what_is_missing_has_the_hubs_error(api: Any, tmp_path: Path) -> None:
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    with pytest.raises(EntryNotFoundError, match="nope does not exist in main"):
        api.hf_hub_download("me/model", "nope", local_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError, match="Revision Not Found for url: .*/revision/nope"):
        api.repo_info("me/model", revision="nope")


def test_a_private_repository_needs_a_token(hub: LocalHub, api: Any) -> None:
    api.create_repo("me/private", private=True)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{hub.url}/api/models/me/private")
    assert api.repo_info("me/private").private


def test_ranges_are_served(hub: LocalHub, api: Any) -> None:
    api.create_commit("me/model", [add("a", b"0123456789")], commit_message="one")
    url = f"{hub.url}/me/model/resolve/main/a"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=2-4"})) as answer:
        assert (answer.status, answer.read()) == (206, b"234")


def test_a_path_that_leaves_the_repository_is_refused(hub: LocalHub, api: Any) -> None:
    for path in ("../../x", "/etc/x"):
        lines = [
            {"key": "header", "value": {"summary": "s"}},
            {"key": "file", "value": {"path": path, "content": ""}},
        ]
        request = urllib.request.Request(
            f"{hub.url}/api/models/me/model/commit/main",
            data="\n".join(map(json.dumps, lines)).encode(),
            headers={"Authorization": "Bearer x"},
        )
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)


@pytest.mark.parametrize("server", ["hub", "aws"])
def test_a_port_in_use_is_one_sentence(server: str, used_port: int, tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)] if server == "hub" else []
    done = subprocess.run(
        [sys.executable, "-m", f"deploy_runner.local.{server}", "--port", str(used_port), *root],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        f"error: port {used_port} can't be used: Address already in use (--port 0 takes a free port)\n",
    )


def test_it_runs_as_a_command_and_keeps_its_state(tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    for turn in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy_runner.local.hub", "--root", str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        api = HfApi(endpoint=json.loads(process.stdout.readline())["url"], token="x")
        if turn == 0:
            api.create_repo("me/kept")
        assert api.repo_info("me/kept").id == "me/kept"
        process.communicate(timeout=30)
        assert process.returncode == 0


# Accounts, rules and pull requests ---------------------------------------------------------------

ACCOUNTS = {
    "hf_owner": Account("me", "write"),
    "hf_reader": Account("me", "read"),
    "hf_other": Account("other", "write"),
}


@pytest.fixture
def owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "owned", accounts=ACCOUNTS, quota_bytes=100, multipart_bytes=40) as running:
        yield running


def as_user(hub: LocalHub, token: str) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=token)


def test_a_token_may_do_what_its_account_may(owned: LocalHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    owner, reader, other = (as_user(owned, token) for token in ACCOUNTS)
    owner.create_repo("me/secret", private=True)
    assert (owner.whoami()["name"], reader.whoami()["auth"]["accessToken"]["role"]) == ("me", "read")
    assert reader.repo_info("me/secret").private
    with pytest.raises(HfHubHTTPError, match="you must use a write token"):
        reader.create_commit("me/secret", [add("a", b"1")], commit_message="one")
    with pytest.raises(RepositoryNotFoundError, match="Repository Not Found for url: .*/models/me/secret"):
        other.repo_info("me/secret")
    with pytest.raises(HfHubHTTPError, match="You don't have the rights"):
        other.create_repo("me/more")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header"):
        as_user(owned, "hf_nobody").repo_info("me/secret")


def test_a_reader_may_propose_and_the_owner_merges(owned: LocalHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    owner, other = as_user(owned, "hf_owner"), as_user(owned, "hf_other")
    owner.create_repo("me/model")
    owner.create_commit("me/model", [add("a", b"1")], commit_message="one")
    for path in ("b", "c"):
        other.create_commit("me/model", [add(path, b"2")], commit_message=f"add {path}", create_pr=True)
    other.create_commit("me/model", [add("a", b"theirs")], commit_message="change a", create_pr=True)
    rows = list(owner.get_repo_discussions("me/model", author="other", discussion_status="open"))
    assert [(row.num, row.title, row.status) for row in rows] == [
        (3, "change a", "open"), (2, "add c", "open"), (1, "add b", "open"),
    ]  # fmt: skip
    with pytest.raises(HfHubHTTPError, match="You don't have the rights"):
        other.merge_pull_request("me/model", 1)
    owner.merge_pull_request("me/model", 1)
    owner.change_discussion_status("me/model", 2, "closed")
    owner.create_commit("me/model", [add("a", b"ours")], commit_message="ours")
    with pytest.raises(HfHubHTTPError, match="There is a conflict about a"):
        owner.merge_pull_request("me/model", 3)
    details = owner.get_discussion_details("me/model", 1)
    assert (details.status, details.target_branch) == ("merged", "refs/heads/main")
    assert details.merge_commit_oid == owner.list_repo_commits("me/model")[1].commit_id
    assert owner.list_repo_commits("me/model")[1].title == "add b (#1)"
    assert owner.list_repo_files("me/model") == ["a", "b"]
    assert [r.status for r in owner.get_repo_discussions("me/model")] == ["open", "closed", "merged"]


def test_links_lead_where_the_request_came_from(owned: LocalHub) -> None:
    import http.client

    as_user(owned, "hf_owner").create_repo("me/model")
    body = json.dumps({"objects": [{"oid": "a" * 64, "size": 3}], "transfers": ["basic"]})
    headers = {"Host": "proxy.test:1", "Authorization": "Bearer hf_owner"}
    port = int(owned.url.rpartition(":")[2])
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("POST", "/me/model.git/info/lfs/objects/batch", body, headers)
        (row,) = json.load(connection.getresponse())["objects"]
    assert row["actions"]["upload"]["href"] == f"http://proxy.test:1/_lfs/{'a' * 64}"


def test_parts_are_put_together_once_and_a_quota_is_kept(owned: LocalHub) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    api = as_user(owned, "hf_owner")
    api.create_repo("me/model")
    data = bytes(range(90))
    api.create_commit("me/model", [add("w.bin", data)], commit_message="one")
    digest = hashlib.sha256(data).hexdigest()
    assert [r for r in owned.requests if "/_lfs/" in r] == [
        *[f"PUT /_lfs/{digest}/part/{n}" for n in range(1, 10)], f"POST /_lfs/{digest}/complete",
        f"POST /_lfs/{digest}/verify",
    ]  # fmt: skip
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(
            urllib.request.Request(f"{owned.url}/_lfs/{digest}/complete", b'{"parts": [{"partNumber": 1}]}')
        )
    with pytest.raises(HfHubHTTPError, match="storage limit reached"):
        api.create_commit("me/model", [add("v.bin", bytes(20))], commit_message="two")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("license: apache2", '"license" must be one of'),
        ("language: no", '"language" must be a string'),
        ("language: [en, en-US]", '"language" with value "en-US" is not valid'),
        (
            "model-index: [{name: m, results: [{task: {type: t}, metrics: []}]}]",
            r"dataset\.name\" is required",
        ),
        ("model-index: [{results: []}]", r"name\" is required"),
        ("a: [", "while parsing"),
        ("- a", "not a mapping"),
    ],
)
def test_a_card_with_wrong_metadata_is_refused(api: Any, metadata: str, said: str) -> None:
    card = add("README.md", f"---\n{metadata}\n---\n# m\n".encode())
    with pytest.raises(ValueError, match=said):
        api.create_commit("me/model", [card], commit_message="one")
