"""The store: right or absent, verified before use, shared by many."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy_runner.errors import StoreError
from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.cas import Store
from deploy_runner.store.files import write_atomic
from deploy_runner.store.gc import collect
from deploy_runner.store.locks import Lock
from deploy_runner.store.seal import Seal
from deploy_runner.store.stat import StatMemo
from deploy_runner.store.verify import verify


def made(store: Store, data: bytes, name: str = "made") -> Path:
    path = store.new_tmp() / name
    path.write_bytes(data)
    return path


def test_a_file_comes_back_as_it_went_in(store: Store, tmp_path: Path) -> None:
    artifact = store.ingest(made(store, b"weights"))
    assert artifact.kind == "file"
    assert artifact.size == 7
    store.materialise(artifact, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert not list(store.new_tmp().iterdir())


def test_a_copy_can_be_written_without_changing_the_object(store: Store, tmp_path: Path) -> None:
    artifact = store.ingest(made(store, b"weights"))
    store.materialise(artifact, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"changed")
    assert store.state(artifact) == "present"


def test_a_folder_is_its_files_whatever_the_order_and_times(store: Store, tmp_path: Path) -> None:
    digests = set()
    for index, names in enumerate((["b", "a/x"], ["a/x", "b"])):
        folder = store.new_tmp() / f"folder{index}"
        for name in names:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(name)
            os.utime(place, (index, index))
        artifact = store.ingest(folder)
        digests.add(artifact)
    assert len(digests) == 1
    store.materialise(artifact, tmp_path / "out")
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")) == [
        "a",
        "a/x",
        "b",
    ]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("symlink", "output x is a symbolic link"),
        ("hard link", "output [xy] is a hard link"),
        ("fifo", "x is not a regular file"),
        ("name", "has a name that can't be stored"),
    ],
)
def test_what_cannot_be_kept_is_refused(store: Store, kind: str, said: str) -> None:
    folder = store.new_tmp() / "folder"
    folder.mkdir()
    if kind == "symlink":
        (folder / "x").symlink_to("/etc/passwd")
    elif kind == "hard link":
        (folder / "x").write_text("x")
        os.link(folder / "x", folder / "y")
    elif kind == "fifo":
        os.mkfifo(folder / "x")
    else:
        (folder / "a\nb").write_text("x")
    with pytest.raises(StoreError, match=said):
        store.ingest(folder)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_object_is_never_served_and_is_replaced(store: Store, tmp_path: Path, damage: str) -> None:
    artifact = store.ingest(made(store, b"weights"))
    assert store.state(artifact) == "present"
    path = store.object_path(artifact.digest)
    state = path.stat()
    path.chmod(0o644)
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(b"weightz" if damage == "flip" else b"weight")
        path.chmod(0o444)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert store.state(artifact) == ("missing" if damage == "delete" else "damaged")
    with pytest.raises(StoreError, match=f"object {artifact.digest} is lost or damaged"):
        store.materialise(artifact, tmp_path / "copy")
    store.ingest(made(store, b"weights"))
    assert store.state(artifact) == "present"


@settings(max_examples=30, deadline=None)
@given(data=st.binary(min_size=1, max_size=200), bit=st.integers(min_value=0))
def test_any_flipped_bit_is_detected(tmp_path_factory: pytest.TempPathFactory, data: bytes, bit: int) -> None:
    store = Store(tmp_path_factory.mktemp("home"))
    artifact = store.ingest(made(store, data))
    path = store.object_path(artifact.digest)
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    path.chmod(0o644)
    path.write_bytes(bytes(changed))
    assert store.state(artifact) == "damaged"


def test_verify_finds_what_the_file_system_hid(store: Store) -> None:
    artifact = store.ingest(made(store, b"weights"))
    assert verify(store).ok
    path = store.object_path(artifact.digest)
    path.chmod(0o644)
    path.write_bytes(b"weightz")
    report = verify(store)
    assert report.damaged == (artifact.digest,)
    assert store.state(artifact) == "missing"


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"x")
    os.utime(path, (1, 1))
    memo = StatMemo(str(tmp_path / "memo.sqlite"), lambda: b"k" * 32)
    memo.remember(str(path), _aged(path), "0" * 64)
    memo.flush()
    again = StatMemo(str(tmp_path / "memo.sqlite"), lambda: b"k" * 32)
    assert again.lookup(str(path), _aged(path)) == "0" * 64
    assert again.lookup(str(path), (*_aged(path)[:1], 5, *_aged(path)[2:])) is None


def _aged(path: Path) -> tuple[int, int, int, int, int]:
    """Return the state as if the file were old: ctime can't be set."""
    s = path.stat()
    return (s.st_size, s.st_mtime_ns, s.st_mtime_ns, s.st_ino, s.st_dev)


def test_a_file_touched_just_now_is_never_remembered(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"one")
    memo = StatMemo(str(tmp_path / "memo.sqlite"), lambda: b"k" * 32)
    first = memo.digest(str(path))
    path.write_bytes(b"two")
    assert memo.digest(str(path)) != first


def test_a_flipped_bit_in_the_memo_is_no_wrong_digest(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "data"
    path.write_bytes(b"x")
    os.utime(path, (1, 1))
    state = _aged(path)
    database = tmp_path / "memo.sqlite"
    for _ in range(60):
        memo = StatMemo(str(database), lambda: b"k" * 32)
        memo.remember(str(path), state, "ab" * 32)
        memo.close()
        data = bytearray(database.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        database.write_bytes(bytes(data))
        assert StatMemo(str(database), lambda: b"k" * 32).lookup(str(path), state) in (None, "ab" * 32)
        database.unlink(missing_ok=True)


def _hold(path: str, ready: str) -> None:
    Lock(path).acquire()
    Path(ready).touch()
    signal.pause()


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = tmp_path / "ready"
    process = context.Process(target=_hold, args=(str(tmp_path / "lock"), str(ready)))
    process.start()
    deadline = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < deadline:
        os.sched_yield()
    assert not Lock(str(tmp_path / "lock")).try_acquire()
    process.kill()
    process.join()
    lock = Lock(str(tmp_path / "lock"))
    assert lock.try_acquire()
    lock.release(remove=True)
    assert not (tmp_path / "lock").exists()


def test_gc_keeps_what_kept_runs_refer_to(store: Store) -> None:
    kept = store.ingest(made(store, b"kept"))
    dropped = store.ingest(made(store, b"dropped"))
    for key, artifact in (("a" * 64, kept), ("b" * 64, dropped)):
        store.records.put(ActionRecord(key, "x", {"o": artifact}, {}, {}))
    assert collect(store, lambda: {"run": ["a" * 64]}, dry_run=True).objects == 1
    report = collect(store, lambda: {"run": ["a" * 64]})
    assert (report.objects, report.bytes, report.records) == (1, 7, 1)
    assert store.state(kept) == "present"
    assert store.state(dropped) == "missing"


def test_gc_refuses_while_a_run_is_live(store: Store) -> None:
    with store.hold(), pytest.raises(StoreError, match="a run is using this store"):
        collect(store, dict)


def test_the_temporary_folder_of_a_killed_run_is_swept(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from deploy_runner.store.cas import Store;"
        "t = Store(Path(sys.argv[1])).new_tmp(); (t / 'half').write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list((tmp_path / "tmp").iterdir())) == 2
    assert Store(tmp_path).sweep_tmp() == 1
    assert not list((tmp_path / "tmp").iterdir())


def test_what_a_killed_writer_left_is_swept_and_what_a_live_one_writes_is_not(store: Store) -> None:
    tmp = store.home / "tmp"
    tmp.mkdir(parents=True)
    for name in ("1-dead.new", "2-live.new"):
        (tmp / name).write_text("half")
    (tmp / "3-folder whose lock was lost").mkdir()
    live = Lock(str(tmp / "2-live.new"))
    assert live.try_acquire()
    assert store.sweep_tmp() == 2
    assert [p.name for p in tmp.iterdir()] == ["2-live.new"]
    live.release()
    assert store.sweep_tmp() == 1


def test_eight_threads_that_begin_a_store_agree_on_its_secret(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(lambda _: Seal(store.home).secret(), range(8)))
    (secret,) = set(secrets)
    assert secret is not None
    assert len(secret) == 32
    assert not list((store.home / "tmp").iterdir())


def test_a_read_only_or_full_disk_is_one_sentence(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with pytest.raises(StoreError, match="No space left on device .free some space and run again."):
            write_atomic(mounted / "file", b"x" * 200_000)
        assert not list(mounted.iterdir())
        write_atomic(mounted / "file", b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        with pytest.raises(StoreError, match="Read-only file system"):
            write_atomic(mounted / "file", b"y")
        assert (mounted / "file").read_bytes() == b"x"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_file_where_the_store_should_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreError, match="home is a file"):
        Store(tmp_path / "home")
