"""Pushes to the Hub through a network that breaks: the right content, published exactly once."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import ConflictError, StageError
from deploy_runner.local.hub import LocalHub
from tests.faults.proxy import Fault, FaultProxy, Moment, Request
from tests.pipeline.hub import REPO, Pusher, calls, use

PARTS_BYTES = 64 << 10
"""What is larger goes in parts, four of this."""

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("503", {"kind": 503}),
    ("503-twice", {"kind": 503, "times": 2}),
    ("429", {"kind": 429, "headers": (("Retry-After", "1"),)}),
    ("reset", {"kind": "reset"}),
    ("partial", {"kind": "partial"}),
    ("commit_then_reset", {"kind": "commit_then_reset"}),
    ("truncated", {"kind": "truncated"}),
    ("slow", {"kind": "slow", "delay_s": 0.3}),
    ("409", {"kind": 409, "body": b'{"error": "Conflict"}'}),
    (
        "412",
        {"kind": 412, "body": b'{"error": "A commit has happened since. Please refresh and try again."}'},
    ),
]
REQUESTS = {
    "info": ("GET", r"/api/models/local/digits(\?|$)"),
    "head": ("GET", "/api/models/local/digits/revision/"),
    "create": ("POST", "/api/repos/create"),
    "refs": ("GET", "/refs"),
    "paths": ("POST", "/paths-info/"),
    "yaml": ("POST", "/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/objects/batch"),
    "put": ("PUT", r"/_lfs/\w+$"),
    "part": ("PUT", r"/_lfs/\w+/part/2"),
    "complete": ("POST", r"/_lfs/\w+/complete"),
    "verify": ("POST", r"/_lfs/\w+/verify"),
    "commit": ("POST", "/commit/"),
    "tag": ("POST", "/tag/"),
}
READS_AND_CARD = ("info", "head", "refs", "paths", "yaml")
"""Where a 409 or 412 has no meaning: such an answer to a read is refused in one sentence."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", multipart_bytes=PARTS_BYTES) as running:
        use(running, monkeypatch)
        yield running


@pytest.fixture
def pusher(hub: LocalHub, tmp_path: Path) -> Pusher:
    return Pusher(hub, tmp_path)


def through(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", proxy.url)


def assert_published_once(pusher: Pusher, files: dict[str, bytes], revision: str = "main") -> None:
    """Assert the content, the one commit, that the tag is on it, and that every object is whole."""
    assert pusher.commits(revision) == 1
    for path, data in files.items():
        assert hashlib.sha256(pusher.content(path, revision)).digest() == hashlib.sha256(data).digest()
    for file in (pusher.folder / "hub/lfs").iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
    assert not list((pusher.folder / "hub/incoming").iterdir())


def cases() -> list[Any]:
    """Return every request with every fault; what is not in the ordinary suite is marked."""
    return [
        pytest.param(
            REQUESTS[request],
            fault,
            id=f"{request}-{name}",
            marks=() if name == "commit_then_reset" or request == "commit" else pytest.mark.faults,
        )
        for request in REQUESTS
        for name, fault in KINDS
        if not (name in ("409", "412") and request in READS_AND_CARD)
        and not (name == "partial" and REQUESTS[request][0] == "GET")
    ]


@pytest.mark.parametrize(("where", "fault"), cases())
def test_whatever_breaks_the_content_is_right_and_published_once(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, where: tuple[str, str], fault: dict[str, Any]
) -> None:
    in_parts = "part" in where[1] or "complete" in where[1]
    weights = random.Random(1).randbytes(PARTS_BYTES + 3_000) if in_parts else b"weights"
    with FaultProxy(pusher.hub.url, [Fault(method=where[0], path=where[1], **fault)]) as proxy:
        through(proxy, monkeypatch)
        run = pusher.push(weights, tag="v1")
        assert proxy.injected
        before = len(proxy.requests)
        assert pusher.push(weights, tag="v1").context.converged
        assert all(request.fault is None for request in proxy.requests[before:])
    assert {"hub:create_commit", "hub:create_tag"} >= set(calls(run)) - {"hub:create_repo"}
    assert_published_once(pusher, {"model.safetensors": weights})
    tags = {tag.name: tag.target_commit for tag in pusher.api.list_repo_refs(REPO).tags}
    assert tags == {"v1": pusher.api.repo_info(REPO).sha}


@pytest.mark.parametrize("request_name", READS_AND_CARD)
@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_without_a_meaning_stops_before_anything_is_published(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, request_name: str, status: int
) -> None:
    method, path = REQUESTS[request_name]
    with FaultProxy(
        pusher.hub.url, [Fault(status, method, path, times=50, body=b'{"error": "no"}')]
    ) as proxy:
        through(proxy, monkeypatch)
        said = r"\A(the Hub reported a conflict for local/digits: no|local/digits@main is being changed by someone else) "
        with pytest.raises((ConflictError, StageError), match=said + r"\(run again\)\Z"):
            pusher.push()
        proxy.faults.clear()
        pusher.push()
    assert_published_once(pusher, {"model.safetensors": b"one"})


@pytest.mark.parametrize("kind", [503, "reset", "commit_then_reset", "truncated", 409, 412])
def test_a_pull_request_whose_answer_is_lost_is_opened_once(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    pusher.api.create_repo(REPO)
    with FaultProxy(pusher.hub.url, [Fault(kind, "POST", "/commit/")]) as proxy:
        through(proxy, monkeypatch)
        run = pusher.push(pull_request=True)
    assert (calls(run), run.figures["revision"]) == (["hub:create_pull_request"], "refs/pr/1")
    assert len(list(pusher.api.get_repo_discussions(REPO))) == 1
    assert_published_once(pusher, {"model.safetensors": b"one"}, "refs/pr/1")


def opened(pusher: Pusher) -> dict[int, str]:
    """Return the status of every pull request by its number."""
    return {found.num: found.status for found in pusher.api.get_repo_discussions(REPO)}


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "answer lost"])
def test_a_pull_request_that_a_quicker_push_has_opened_is_used(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    pusher.api.create_repo(REPO)
    done: list[str] = []

    def quicker(moment: Moment, request: Request) -> None:
        if moment == "received" and "/commit/" in request.path and not done:
            done.append(request.path)
            address = f"{pusher.hub.url}/api/models/{REPO}/commit/main?create_pr=1"
            commit_directly(
                address, "theirs.txt", b"theirs", title="Publish with deploy-runner", token="hf_dry_run"
            )

    faults = [Fault("commit_then_reset", "POST", "/commit/")] if lost else []
    with FaultProxy(pusher.hub.url, faults, observe=quicker) as proxy:
        through(proxy, monkeypatch)
        run = pusher.push(pull_request=True)
        assert pusher.push(pull_request=True).context.converged
    assert run.figures["revision"] == "refs/pr/1"
    assert opened(pusher) == {1: "open", 2: "closed"}
    assert pusher.content("model.safetensors", "refs/pr/1") == b"one"


@pytest.mark.slow
def test_three_pushes_at_once_end_in_one_pull_request(pusher: Pusher, tmp_path: Path) -> None:
    pusher.api.create_repo(REPO)
    for name, size in FILES.items():
        (tmp_path / name).write_bytes(bytes(size))
    together = threading.Barrier(3)

    def wait(moment: Moment, request: Request) -> None:
        if moment == "received" and "create_pr=1" in request.path and "/commit/" in request.path:
            together.wait(timeout=120)

    with FaultProxy(pusher.hub.url, observe=wait) as proxy:
        pushes = [push_process(tmp_path, proxy.url, f"run{n}", '"pull_request": True') for n in range(3)]
        assert [push.wait() for push in pushes] == [0, 0, 0]
    assert opened(pusher) == {1: "open", 2: "closed", 3: "closed"}


def in_between(pusher: Pusher, path: str, data: bytes) -> Any:
    """Return an observer that commits a file just before our commit arrives, once."""
    done: list[str] = []

    def observe(moment: Moment, request: Request) -> None:
        if moment == "received" and "/commit/" in request.path and not done:
            done.append(path)
            commit_directly(f"{pusher.hub.url}/api/models/{REPO}/commit/main", path, data)

    return observe


def commit_directly(
    address: str, path: str, data: bytes, *, title: str = "theirs", token: str = "hf_other"
) -> None:
    import base64
    import urllib.request

    lines = [
        {"key": "header", "value": {"summary": title}},
        {
            "key": "file",
            "value": {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"},
        },
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    urllib.request.urlopen(
        urllib.request.Request(address, body, {"Authorization": f"Bearer {token}"})
    ).close()


def test_a_commit_of_somebody_else_in_between_is_built_upon(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pusher.push(b"one")
    with FaultProxy(pusher.hub.url, observe=in_between(pusher, "theirs.txt", b"theirs")) as proxy:
        through(proxy, monkeypatch)
        run = pusher.push(b"two")
        assert [r.status for r in proxy.requests if "/commit/" in r.path] == [412, 200]
    assert calls(run) == ["hub:create_commit"]
    assert pusher.content("theirs.txt") == b"theirs"
    assert pusher.content("model.safetensors") == b"two"
    assert pusher.commits() == 3


def test_a_change_of_our_file_in_between_is_a_conflict_and_stays(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    pusher.push(b"one")
    with FaultProxy(pusher.hub.url, observe=in_between(pusher, "README.md", b"# theirs")) as proxy:
        through(proxy, monkeypatch)
        with pytest.raises(
            ConflictError, match=r"README\.md of local/digits was changed by someone else during"
        ):
            pusher.push(b"two")
    assert pusher.content("README.md") == b"# theirs"
    assert pusher.content("model.safetensors") == b"one"


def test_a_hub_that_is_gone_for_good_is_given_up_in_one_sentence(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = (("Retry-After", "3600"),)
    with FaultProxy(pusher.hub.url, [Fault(429, "POST", "/objects/batch", headers=headers)]) as proxy:
        through(proxy, monkeypatch)
        with pytest.raises(
            StageError, match="the Hub responded with HTTP 429 and asks to wait 3600 s; gave up after 1"
        ):
            pusher.push()
    assert pusher.commits() == 0


# SIGKILL -----------------------------------------------------------------------------------------

PUSH = """
import sys
from pathlib import Path
from deploy_runner.testing import run_stage
from tests.pipeline.hub import TARGET, push_hub
folder = Path(sys.argv[1])
run_stage(push_hub(), folder / RUN, inputs={"files": {n: folder / n for n in sys.argv[2:]}},
          params={"repo": "digits", PARAM}, target=TARGET)
"""
FILES = {"a.safetensors": PARTS_BYTES + 9_000, "b.onnx": 20_000, "c.txt": 1_000}


class Killer:
    """Kills the push at the k-th moment of all its requests."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, moment: Moment, request: Request) -> None:
        self.left -= 1
        if self.left == 0 and self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def push_process(
    folder: Path, url: str, run: str = "run", param: str = '"tag": "v1"'
) -> subprocess.Popen[bytes]:
    env = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": "hf_dry_run", "HF_HUB_DISABLE_XET": "1"}
    root = Path(__file__).parents[2]
    script = PUSH.replace("RUN", repr(run)).replace("PARAM", param)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), *FILES], env=env, cwd=root, stdout=subprocess.DEVNULL
    )


def assert_whole_or_nothing(pusher: Pusher, contents: dict[str, bytes]) -> None:
    """Assert that the branch has all of it or nothing, and nothing that it points to is missing."""
    if not pusher.api.repo_exists(REPO):
        return
    names = set(pusher.api.list_repo_files(REPO))
    assert names in (set(), {*contents, "README.md", "deploy-runner.json"})
    for name in names & set(contents):
        assert pusher.content(name) == contents[name]


def kill_at(pusher: Pusher, moments: list[int]) -> int:
    """Kill pushes at these moments, one after the other on one repository, and let the last one end."""
    rng, killed = random.Random(5), 0
    contents = {name: rng.randbytes(size) for name, size in FILES.items()}
    for name, data in contents.items():
        (pusher.folder / name).write_bytes(data)
    for at in moments:
        killer = Killer(at)
        with FaultProxy(pusher.hub.url, observe=killer) as proxy:
            killer.process = push_process(pusher.folder, proxy.url)
            killed += killer.process.wait() == -signal.SIGKILL
        assert_whole_or_nothing(pusher, contents)
    there = {path.name for path in (pusher.folder / "hub/lfs").glob("*")}
    before = len(pusher.hub.requests)
    assert push_process(pusher.folder, pusher.hub.url).wait() == 0
    sent = [r for r in pusher.hub.requests[before:] if r.startswith("PUT")]
    assert not any(digest in request for digest in there for request in sent)  # What is there stays there.
    assert_published_once(pusher, contents)
    assert [tag.name for tag in pusher.api.list_repo_refs(REPO).tags] == ["v1"]
    return killed


def requests_of_a_push(folder: Path) -> list[Request]:
    """Return the requests of a push from nothing."""
    folder.mkdir()
    with LocalHub(folder / "hub", multipart_bytes=PARTS_BYTES) as hub, FaultProxy(hub.url) as proxy:
        for name, size in FILES.items():
            (folder / name).write_bytes(bytes(size))
        assert push_process(folder, proxy.url).wait() == 0
        return proxy.requests


@pytest.mark.slow
def test_a_push_that_is_killed_again_and_again_ends_as_one_commit(pusher: Pusher, tmp_path: Path) -> None:
    count = 3 * len(requests_of_a_push(tmp_path / "c"))
    assert kill_at(pusher, [1 + count * k // 6 for k in range(6)]) >= 3


@pytest.mark.slow
def test_a_push_that_is_killed_at_its_commit_sends_no_object_again(pusher: Pusher, tmp_path: Path) -> None:
    requests = requests_of_a_push(tmp_path / "c")
    commit = next(k for k, request in enumerate(requests) if "/commit/" in request.path)
    assert kill_at(pusher, [1 + 3 * commit]) == 1
    assert sum(r.startswith("PUT") for r in pusher.hub.requests) == 6  # Five parts, and a file in one.


@pytest.mark.faults
def test_a_push_that_is_killed_at_200_moments_is_published_once(tmp_path: Path) -> None:
    count, killed = 3 * len(requests_of_a_push(tmp_path / "c")), 0
    for turn in range(230):
        folder = tmp_path / f"turn{turn}"
        folder.mkdir()
        with LocalHub(folder / "hub", multipart_bytes=PARTS_BYTES) as hub:
            killed += kill_at(Pusher(hub, folder), [1 + turn % (count - 3)])
    assert killed >= 200
