"""One store, many processes: temporary folders, locks, and what a verification finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.cas import Store
from deploy_runner.store.locks import Lock
from deploy_runner.store.verify import VerifyReport, verify
from tests.unit.objects import file, folder, spoil

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_process_has_one_temporary_folder_until_it_closes(store: Store) -> None:
    first = store.new_tmp()
    assert first == store.new_tmp()
    assert first.parent == store.home / "tmp"
    assert first.name.startswith(f"{os.getpid()}-")
    assert first.stat().st_mode & 0o777 == 0o700
    assert not Lock(f"{first}.lock").try_acquire()
    (first / "x").touch()
    store.close()
    assert list((store.home / "tmp").iterdir()) == []
    second = store.new_tmp()
    assert second != first
    assert second.is_dir()
    store.close()
    store.close()


def test_what_ended_processes_left_is_swept_and_nothing_else(store: Store) -> None:
    own, other = store.new_tmp(), Store(store.home)
    theirs = other.new_tmp()
    for name in ("1-dead", "2-dead"):
        (own.parent / name).mkdir()
        (own.parent / name / "x").touch()
        (own.parent / f"{name}.lock").touch()
    (own.parent / "3-lonely.lock").touch()
    (own.parent / "record.json.new").touch()
    written = Lock(str(own.parent / "other.json.new"))
    assert written.try_acquire()
    assert store.sweep_tmp() == 4
    assert {path.name for path in own.parent.iterdir()} == {
        own.name,
        f"{own.name}.lock",
        theirs.name,
        f"{theirs.name}.lock",
        "other.json.new",
    }
    assert store.sweep_tmp() == 0
    written.release()
    assert store.sweep_tmp() == 1
    other.close()
    assert Store(store.home / "none").sweep_tmp() == 0


def test_an_action_is_made_under_its_own_lock(store: Store) -> None:
    lock = store.lock("k" * 64)
    assert lock.path == str(store.home / "locks" / ("k" * 64))
    assert lock.try_acquire()
    assert not store.lock("k" * 64).try_acquire()
    assert store.lock("j" * 64).try_acquire()


def collector(home: Path) -> Lock:
    return Lock(str(home / "gc.lock"))


def test_nothing_is_collected_while_a_run_holds_the_store(store: Store) -> None:
    with store.hold():
        with Store(store.home).hold():
            assert not collector(store.home).try_acquire()
        assert not collector(store.home).try_acquire()
        store.new_tmp()
    assert collector(store.home).try_acquire()
    assert list((store.home / "tmp").iterdir()) == []


def test_nothing_is_collected_from_the_protected_store_either(tmp_path: Path) -> None:
    protected = tmp_path / "protected"
    store = Store(tmp_path / "own", protected=protected)
    with store.hold():
        assert not (protected / "gc.lock").exists()
    protected.mkdir()
    (protected / "gc.lock").touch()
    with store.hold():
        assert not collector(protected).try_acquire()
        with Lock(str(protected / "gc.lock"), shared=True) as another:
            assert another.held
    assert collector(protected).try_acquire()


def test_what_was_hashed_is_written_down_on_closing(store: Store) -> None:
    artifact = store.ingest(file(store))
    assert store.state(artifact) == "present"  # It has just been hashed.
    store.close()
    assert not (store.home / "stat.sqlite").exists()
    later = Store(store.home)
    assert later.state(artifact) == "present"
    later.close()
    assert (store.home / "stat.sqlite").exists()


def test_a_sound_store_is_said_to_be(store: Store) -> None:
    store.ingest(folder(store))
    artifact = store.ingest(file(store))
    store.records.put(ActionRecord("k" * 64, "a.b", {"o": artifact}, {}, {}))
    (store.home / "cas/sha256/stray").mkdir()
    (store.home / "cas/sha256/stray" / ("0" * 62)).touch()
    (store.object_path(artifact.digest).parent / "short").touch()
    total = sum(path.stat().st_size for path in (store.home / "cas").rglob("*") if path.is_file())
    report = verify(store)
    assert report == VerifyReport(4, total, (), 1, ())
    assert report.ok
    assert str(report) == f"4 objects ({total} bytes) and 1 action record: all intact"
    assert report.as_dict() == {
        "ok": True,
        "objects": 4,
        "bytes": total,
        "damaged": [],
        "records": 1,
        "refused_records": [],
    }


def test_what_is_damaged_is_removed_and_said(store: Store, tmp_path: Path) -> None:
    sound, flipped, linked = (store.ingest(file(store, data)) for data in (b"one", b"two", b"three"))
    spoil(store.object_path(flipped.digest), b"TWO")
    (tmp_path / "three").write_bytes(b"three")
    store.object_path(linked.digest).unlink()
    store.object_path(linked.digest).symlink_to(tmp_path / "three")
    for key in ("k" * 64, "j" * 64):
        store.records.put(ActionRecord(key, "a.b", {}, {}, {}))
    (store.home / "actions/kk" / f"{'k' * 62}.json").write_bytes(b"x")
    report = verify(store)
    assert sorted(report.damaged) == sorted([flipped.digest, linked.digest])
    assert (report.objects, report.records, report.refused_records) == (3, 2, ("k" * 64,))
    assert not report.ok
    assert not VerifyReport(0, 0, ("x",), 0, ()).ok
    assert not VerifyReport(0, 0, (), 0, ("x",)).ok
    assert str(report).splitlines() == [
        f"3 objects ({report.bytes} bytes) and 2 action records: removed the damaged ones, the next run rebuilds them",
        *(f"  object {found}" for found in report.damaged),
        f"  action record {'k' * 64}",
    ]
    assert report.as_dict()["damaged"] == list(report.damaged)
    assert report.as_dict()["refused_records"] == ["k" * 64]
    assert [found for found, _ in store.objects()] == [sound.digest]
    assert (tmp_path / "three").read_bytes() == b"three"
    assert list(store.records.keys()) == ["j" * 64]
    assert verify(store).ok
