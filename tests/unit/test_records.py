"""Action records and the keys of the last run: sealed, where they belong, and read as absent if they aren't."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.store.actions import ActionRecord, LastKeys, Records, listdir
from deploy_runner.types import Artifact

KEY = "ab" + "k" * 62
REFUSED = "its action record is damaged"


def record(key: str = "k" * 64) -> ActionRecord:
    outputs = {"o": Artifact("d" * 64, "file", 3)}
    return ActionRecord(key, "a.b", outputs, {"f": 1.5}, {"uses": "a.b"}, 0.1)


def test_a_record_comes_back_only_if_every_bit_is_right(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(record())
    assert records.get("k" * 64) == record()
    (path,) = (tmp_path / "actions").rglob("*.json")
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        assert records.get("k" * 64) is None
        assert "damaged" in records.problem("k" * 64)


def test_a_record_under_another_key_or_of_another_store_is_refused(tmp_path: Path) -> None:
    ours, theirs = Records(tmp_path / "ours"), Records(tmp_path / "theirs")
    theirs.put(record())
    (source,) = (tmp_path / "theirs/actions").rglob("*.json")
    for key in ("k" * 64, "j" * 64):
        target = tmp_path / "ours/actions" / key[:2] / f"{key[2:]}.json"
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read_bytes())
        assert ours.get(key) is None
    assert theirs.get("k" * 64) is not None


def test_a_shared_key_lets_two_stores_trust_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_RUNNER_CACHE_KEY", "shared")
    Records(tmp_path).put(record())
    assert Records(tmp_path).get("k" * 64) == record()
    monkeypatch.setenv("DEPLOY_RUNNER_CACHE_KEY", "other")
    assert Records(tmp_path).get("k" * 64) is None


def place(home: Path, key: str = KEY) -> Path:
    return home / "actions" / key[:2] / f"{key[2:]}.json"


def test_a_record_is_a_file_of_its_own_with_everything_in_it(tmp_path: Path) -> None:
    written = ActionRecord(
        KEY, "a.b", {"o": Artifact("d" * 64, "folder", 3)}, {"f": "é"}, {"uses": "a.b"}, 0.5
    )
    records = Records(tmp_path)
    records.put(written)
    seal, _, body = place(tmp_path).read_bytes().partition(b"\n")
    assert len(seal) == 129
    assert (
        body
        == (
            f'{{"key":"{KEY}","uses":"a.b","outputs":{{"o":["{"d" * 64}","folder",3]}},'
            '"figures":{"f":"é"},"preimage":{"uses":"a.b"},"seconds":0.5}'
        ).encode()
    )
    assert records.get(KEY) == records.own(KEY) == Records(tmp_path).get(KEY) == written
    assert records.problem(KEY) == ""
    assert not list((tmp_path / "tmp").iterdir())


def test_a_record_is_written_by_way_of_the_stores_own_folder(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Records(tmp_path).put(record(KEY))
    assert {path.name for path in tmp_path.iterdir()} == {"actions", "elsewhere", "secret", "tmp"}


def test_a_record_replaces_the_one_before(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(record(KEY))
    records.put(record(KEY)._replace(figures={"f": 2}))
    found = records.get(KEY)
    assert found is not None
    assert found.figures == {"f": 2}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_where_a_folder_belongs_gives_way(tmp_path: Path, kind: str) -> None:
    (tmp_path / "actions").mkdir()
    (tmp_path / "kept").mkdir()
    if kind == "file":
        place(tmp_path).parent.write_text("")
    else:
        place(tmp_path).parent.symlink_to(tmp_path / "kept")
    Records(tmp_path).put(record(KEY))
    assert place(tmp_path).is_file()
    assert not list((tmp_path / "kept").iterdir())


def test_what_is_absent_has_no_problem(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.get(KEY) is None
    assert records.own(KEY) is None
    assert records.problem(KEY) == ""
    assert list(records.keys()) == []
    records.remove(KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": []},
        {"outputs": {"o": ["d", "file", 3, True, 5]}},
        {"outputs": {"o": 3}},
        {"outputs": None},
        {"uses": ...},
        {"outputs": ...},
        {"figures": ...},
        {"preimage": ...},
        {"seconds": ...},
        [1],
        "not JSON",
    ],
)
def test_a_record_of_another_version_is_refused(tmp_path: Path, change: Any) -> None:
    value: Any = {"uses": "a.b", "outputs": {}, "figures": {}, "preimage": {}, "seconds": 0.0}
    if isinstance(change, dict):
        value = {k: v for k, v in (value | change).items() if v is not ...}
    body = change if isinstance(change, str) else json.dumps(value if isinstance(change, dict) else change)
    records = Records(tmp_path)
    place(tmp_path).parent.mkdir(parents=True)
    place(tmp_path).write_bytes(records.seal.sealed(body.encode(), "action", KEY))
    assert records.get(KEY) is None
    assert records.problem(KEY) == "its action record was written by another version of deploy-runner"


def test_a_record_of_another_kind_is_refused(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(record(KEY))
    body = place(tmp_path).read_bytes().partition(b"\n")[2]
    place(tmp_path).write_bytes(records.seal.sealed(body, "last", KEY))
    assert records.get(KEY) is None
    place(tmp_path).write_bytes(records.seal.sealed(body, "action", KEY))
    assert records.get(KEY) is not None


def test_a_record_that_is_removed_is_no_more(tmp_path: Path) -> None:
    records = Records(tmp_path)
    other = "cd" + KEY[2:]
    records.put(record(KEY))
    records.put(record(other))
    records.remove(KEY)
    assert not place(tmp_path).exists()
    assert list(records.keys()) == [other]
    place(tmp_path).mkdir(parents=True)
    (place(tmp_path) / "x").touch()
    records.remove(KEY)
    assert not place(tmp_path).exists()


def test_the_keys_are_those_of_every_record_sound_or_not(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(record(KEY))
    records.put(record(KEY[:-1] + "x"))
    records.put(record("cd" + KEY[2:]))
    place(tmp_path).write_bytes(b"damaged")
    for name in (".hidden.json", "no-record.txt", "json"):
        (place(tmp_path).parent / name).touch()
    (tmp_path / "actions/stray.json").touch()
    assert sorted(records.keys()) == sorted([KEY, KEY[:-1] + "x", "cd" + KEY[2:]])


def test_names_are_listed_and_none_where_there_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert listdir(str(tmp_path)) == ["x"]
    assert listdir(str(tmp_path / "none")) == []
    assert listdir(str(tmp_path / "x")) == []


def test_what_a_store_lacks_is_found_in_the_protected_one_which_is_only_read(tmp_path: Path) -> None:
    protected, own = tmp_path / "protected", tmp_path / "own"
    there, here = "11" + KEY[2:], "22" + KEY[2:]
    Records(protected).put(record(there))
    before = sorted(protected.rglob("*"))
    records = Records(own, protected=protected)
    records.put(record(here))
    assert records.get(there) == record(there)
    assert records.own(there) is None
    assert records.get(here) == record(here)
    assert list(records.keys()) == [here]
    records.put(record(there)._replace(figures={"f": 2}))
    found = records.get(there)
    assert found is not None
    assert found.figures == {"f": 2}
    records.remove(there)
    assert records.get(there) == record(there)
    assert sorted(protected.rglob("*")) == before


def test_why_a_protected_record_was_refused_is_said(tmp_path: Path) -> None:
    protected = tmp_path / "protected"
    Records(protected).put(record(KEY))
    place(protected).write_bytes(b"damaged")
    records = Records(tmp_path / "own", protected=protected)
    assert records.get(KEY) is None
    assert records.problem(KEY) == REFUSED
    assert records.problem("00" + KEY[2:]) == ""


def test_what_is_sealed_beside_a_protected_store_is_not_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_RUNNER_CACHE_KEY", "shared")
    other = "11" + KEY[2:]
    Records(tmp_path / "protected").put(record(other))
    assert Records(tmp_path / "own", protected=tmp_path / "protected").get(other) == record(other)
    Records(tmp_path / "own", protected=tmp_path / "protected").put(record(KEY))
    place(tmp_path / "protected").parent.mkdir(parents=True)
    os.link(place(tmp_path / "own"), place(tmp_path / "protected"))
    assert Records(tmp_path / "protected").get(KEY) is None
    assert Records(tmp_path / "own", protected=tmp_path / "protected").own(KEY) == record(KEY)


def test_a_store_that_is_only_read_makes_nothing(tmp_path: Path) -> None:
    Records(tmp_path / "own").put(record(KEY))
    place(tmp_path / "read").parent.mkdir(parents=True)
    place(tmp_path / "read").write_bytes(place(tmp_path / "own").read_bytes())
    assert Records(tmp_path / "read", writable=False).get(KEY) is None
    assert Records(tmp_path / "another", protected=tmp_path / "read").get(KEY) is None
    assert [path.name for path in (tmp_path / "read").iterdir()] == ["actions"]


def test_last_keys_survive_garbage(tmp_path: Path) -> None:
    LastKeys(tmp_path, "p").update({"a": "1"})
    assert LastKeys(tmp_path, "p").read() == {"a": "1"}
    (file,) = (tmp_path / "last").iterdir()
    file.write_bytes(b"\xff")
    assert LastKeys(tmp_path, "p").read() == {}


def test_last_keys_are_kept_by_pipeline_and_added_to(tmp_path: Path) -> None:
    LastKeys(tmp_path, "p").update({"a": "1", "b": "2"})
    LastKeys(tmp_path, "\udcff").update({"a": "3"})
    last = LastKeys(tmp_path, "p")
    last.update({"b": "4", "c": "5"})
    assert last.read() == LastKeys(tmp_path, "p").read() == {"a": "1", "b": "4", "c": "5"}
    assert LastKeys(tmp_path, "\udcff").read() == {"a": "3"}
    assert LastKeys(tmp_path, "none").read() == {}
    names = [path.name for path in (tmp_path / "last").iterdir()]
    assert {len(name) for name in names} == {len("0" * 32 + ".json")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "secret", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())


def test_last_keys_that_are_the_same_are_not_written_again(tmp_path: Path) -> None:
    last = LastKeys(tmp_path, "p")
    last.update({"a": "1"})
    (file,) = (tmp_path / "last").iterdir()
    before = file.stat()
    for keys in (last, LastKeys(tmp_path, "p")):
        keys.update({"a": "1"})
        keys.update({})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    file.unlink()
    assert last.read() == {"a": "1"}


def test_last_keys_of_another_pipeline_kind_or_form_are_absent(tmp_path: Path) -> None:
    last = LastKeys(tmp_path, "p")
    last.update({"a": "1"})
    (file,) = (tmp_path / "last").iterdir()
    LastKeys(tmp_path, "other").update({"b": "2"})
    (other,) = {*(tmp_path / "last").iterdir()} - {file}
    other.write_bytes(file.read_bytes())
    assert LastKeys(tmp_path, "other").read() == {}
    seal = Records(tmp_path).seal
    for body, kind, expected in (
        (b'{"a": "2"}', "last", {"a": "2"}),
        (b'{"a": "2"}', "action", {}),
        (b"[1]", "last", {}),
    ):
        file.write_bytes(seal.sealed(body, kind, file.stem))
        assert LastKeys(tmp_path, "p").read() == expected
    file.write_bytes(b"")
    assert LastKeys(tmp_path, "p").read() == {}
