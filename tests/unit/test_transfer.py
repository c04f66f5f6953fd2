"""Large objects: in ranges where one stream is slow, resumed after breaks, in bounded memory, and never wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from deploy_runner.errors import StoreError
from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.remote import Remote, RemoteError
from deploy_runner.store.shared import SharedStore
from deploy_runner.store.transfer import download
from deploy_runner.types import Artifact, RemoteSpec
from tests.faults.proxy import Fault
from tests.machines import SECRET, Bucket, Share

EVERY = 1 << 30
MIB = 1 << 20


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """The environment, with the secret; obstore reads the process's own."""
    monkeypatch.setenv("DEPLOY_RUNNER_CACHE_KEY", SECRET)
    return os.environ


def reach(remote: Share, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 2.0) -> Remote:
    for name, value in remote.env.items():
        monkeypatch.setenv(name, value)
    return Remote(RemoteSpec(remote.url, push=True, timeout_s=timeout_s), os.environ)


def bring(
    remote: Remote, data: bytes, size: int, folder: Path, report: Callable[[int], None] = print
) -> bytes:
    """Download the object `v1/x` as one of this size; return what was written if its digest is that of `data`."""
    fd = os.open(folder / "x", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        found = download(remote, "v1/x", size, fd, report)
        written = (folder / "x").read_bytes()
        assert found == hashlib.sha256(written).hexdigest()
        assert (found == hashlib.sha256(data).hexdigest()) == (written == data)
        return written
    finally:
        os.close(fd)


def test_every_size_arrives_and_is_reported(
    remote: Share, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = reach(remote, monkeypatch)
    for size in (0, 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 5 * MIB):
        data, told = os.urandom(size), [0]
        remote.write("x", data)
        assert bring(client, data, size, tmp_path, told.append) == data
        assert sum(told) == size


def test_a_slow_stream_is_divided_into_ranges(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client, data = reach(bucket, monkeypatch), os.urandom(48 * MIB)
    bucket.write("x", data)
    bucket.disturb(Fault("throttled", "GET", times=1, bytes_per_s=4 * MIB))
    assert bring(client, data, len(data), tmp_path) == data
    ranges = [r.headers["range"] for r in bucket.asked("GET")]
    assert len(ranges) == 4
    assert len(set(ranges)) == 4


@pytest.mark.parametrize("kind", ["truncated", "reset", "partial", 500, 503, "commit_then_reset"])
def test_a_break_is_resumed_where_it_was(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: int
) -> None:
    client, data = reach(bucket, monkeypatch), os.urandom(12 * MIB)
    bucket.write("x", data)
    for nth in (1, 2, 3):
        cut = Fault("truncated", "GET", times=nth, after_bytes=3 * MIB)
        bucket.disturb(cut, Fault(kind, "GET", nth=nth + 1, times=1))
        assert bring(client, data, len(data), tmp_path) == data
        starts = [
            int(r.headers["range"].removeprefix("bytes=").partition("-")[0]) for r in bucket.asked("GET")
        ]
        assert all(later >= start - 2 * MIB for start, later in pairwise(starts))  # A chunk may come twice.
        assert len(starts) > nth
        assert min(starts[1:]) >= MIB
    asked = sum(int(r.fault is None) for r in bucket.asked("GET"))
    assert asked == 1  # The rest came in one stream.


@pytest.mark.parametrize("kind", ["reset", "stall", 500, 403])
def test_what_never_comes_is_given_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: int
) -> None:
    client = reach(bucket, monkeypatch, 0.5)
    bucket.write("x", b"data")
    bucket.disturb(Fault(kind, "GET", times=EVERY))
    with pytest.raises(RemoteError, match="can't be read: "):
        bring(client, b"data", 4, tmp_path)


def test_an_answer_that_hangs_in_its_middle_is_resumed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client, data = reach(bucket, monkeypatch, 0.5), os.urandom(6 * MIB)
    bucket.write("x", data)
    bucket.disturb(Fault("hang", "GET", times=2))
    assert bring(client, data, len(data), tmp_path) == data
    assert len(bucket.asked("GET")) >= 3


def test_a_report_can_end_a_download_that_stalls(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(count: int) -> None:
        raise Stop("now")

    client = reach(bucket, monkeypatch, 1.0)
    bucket.write("x", b"data")
    bucket.disturb(Fault("stall", "GET", times=EVERY))
    with pytest.raises(Stop, match="now"):
        bring(client, b"data", 4, tmp_path, stop)
    assert len(bucket.asked("GET")) == 1


@pytest.mark.parametrize(
    "change", [-1, 1, -2 * MIB, 2 * MIB], ids=["shorter", "longer", "much shorter", "much longer"]
)
def test_an_object_of_another_size_never_passes(
    remote: Share, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: int
) -> None:
    client, size = reach(remote, monkeypatch), 5 * MIB
    right = os.urandom(size + 2 * MIB)
    remote.write("x", right[: size + change])
    if change > 0:
        assert bring(client, right[:size], size, tmp_path) == right[:size]  # What was asked for is right.
    else:
        with pytest.raises(FileNotFoundError, match="v1/x"):
            bring(client, right[:size], size, tmp_path)


def test_an_object_that_is_missing_is_not_found(
    remote: Share, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="x"):
        bring(reach(remote, monkeypatch), b"", 4, tmp_path)


def shared(
    remote: Share, folder: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 2.0
) -> SharedStore:
    for name, value in remote.env.items():
        monkeypatch.setenv(name, value)
    spec = RemoteSpec(remote.url, push=True, timeout_s=timeout_s)
    return SharedStore(folder, spec, protected=None, environ=os.environ)


def taken(store: SharedStore, data: bytes) -> Artifact:
    path = store.new_tmp() / "made"
    path.write_bytes(data)
    return store.ingest(path)


@pytest.mark.parametrize("size", [1000, 9 * MIB, 20 * MIB])
def test_wrong_bytes_are_refused_and_leave_nothing(
    remote: Share, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    sender, reader = (shared(remote, tmp_path / name, monkeypatch) for name in ("sender", "reader"))
    artifact = taken(sender, os.urandom(size))
    sender.send(artifact)
    name = remote.names("objects")[0]
    right = remote.read(name)
    remote.write(name, right[:-1] + bytes([right[-1] ^ 1]))
    assert not reader.fetch(artifact)
    assert list(reader.objects()) == []
    remote.write(name, right)
    assert reader.fetch(artifact)
    assert reader.object_path(artifact.digest).read_bytes() == right
    for store in (sender, reader):
        store.close()
        assert list((store.home / "tmp").iterdir()) == []


@pytest.mark.parametrize("size", [1000, 9 * MIB, 20 * MIB])
def test_a_damaged_object_is_never_sent_and_turns_nothing_off(
    remote: Share, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    store = shared(remote, tmp_path / "sender", monkeypatch)
    artifact = taken(store, os.urandom(size))
    path = store.object_path(artifact.digest)
    right = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    record = ActionRecord("ab" * 32, "text.upper", {"o": artifact}, {}, {})
    for damage in ("is damaged", "can't be read: No such file"):
        with pytest.raises(StoreError, match=f"object {artifact.digest} {damage}"):
            store.push(record)
        assert remote.names() == []
        assert store.link.works("written")
        path.unlink(missing_ok=True)
    path.write_bytes(right)
    assert store.push(record)
    assert len(remote.names("records")) == 1
    store.close()


def test_a_link_of_one_megabyte_a_second_is_slow_and_not_broken(
    bucket: Bucket, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A part takes longer than a request may."""
    store = shared(bucket, tmp_path / "sender", monkeypatch, timeout_s=0.8)
    artifact = taken(store, os.urandom(12 * MIB))
    bucket.disturb(Fault("throttled", "PUT", times=EVERY, bytes_per_s=5 * MIB))
    assert store.push(ActionRecord("ab" * 32, "text.upper", {"o": artifact}, {}, {}))
    store.close()


def test_threads_that_bring_a_folder_share_one_temporary_folder(
    remote: Share, environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sender, reader = (shared(remote, tmp_path / name, monkeypatch) for name in ("sender", "reader"))
    folder = sender.new_tmp() / "folder"
    folder.mkdir()
    for n in range(64):
        (folder / f"{n}").write_bytes(os.urandom(1000))
    artifact = sender.ingest(folder)
    sender.send(artifact)
    assert reader.fetch(artifact)
    assert len([p for p in (reader.home / "tmp").iterdir() if p.is_dir()]) == 1
    for store in (sender, reader):
        store.close()
        assert list((store.home / "tmp").iterdir()) == []


MEASURE = """
import json, os, re, sys
from pathlib import Path
from deploy_runner.store.shared import SharedStore
from deploy_runner.types import Artifact, RemoteSpec
url, home, digest, size, verb = sys.argv[1:]
store = SharedStore(Path(home), RemoteSpec(url, push=True), protected=None, environ=os.environ)
store.find("0" * 64); store.link.remote.size("x")  # All that is imported on first use.
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # From now on.
before = peak_kib()
artifact = Artifact(digest, "file", int(size))
done = store.fetch(artifact) if verb == "fetch" else store.send(artifact) is None
store.close()
print(json.dumps([done, peak_kib() - before]))
"""


@pytest.mark.slow
def test_a_large_object_needs_no_more_memory_than_a_few_of_its_parts(
    bucket: Bucket, environ: Mapping[str, str], tmp_path: Path
) -> None:
    size, piece, hashed = 256 * MIB, os.urandom(MIB), hashlib.sha256()
    digest_file = tmp_path / "file"
    with digest_file.open("wb") as file:
        for _ in range(256):
            file.write(piece)
            hashed.update(piece)
    digest = hashed.hexdigest()
    here = tmp_path / f"sender/cas/sha256/{digest[:2]}"
    here.mkdir(parents=True)
    digest_file.rename(here / digest[2:])
    for home, verb in (("sender", "send"), ("reader", "fetch")):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, bucket.url, str(tmp_path / home), digest, str(size), verb],
            env={**environ, **bucket.env}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        made, grown_kib = json.loads(done.stdout)
        print(f"{verb}: {grown_kib >> 10} MiB")
        assert made
        assert grown_kib < 64 << 10
