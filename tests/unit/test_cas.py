"""Objects by the digest of their content: what goes in, what comes out, what is found to be wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from deploy_runner.errors import StoreError
from deploy_runner.store.actions import ActionRecord
from deploy_runner.store.cas import Store
from deploy_runner.store.verify import verify
from deploy_runner.types import Artifact
from tests.unit.objects import MEMBERS, digest, file, folder, spoil

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_a_file_is_moved_to_the_place_that_its_digest_names(store: Store) -> None:
    made = file(store)
    artifact = store.ingest(made)
    assert artifact == Artifact(digest(b"weights"), "file", 7)
    assert not made.exists()
    path = store.home / "cas/sha256" / artifact.digest[:2] / artifact.digest[2:]
    assert store.object_path(artifact.digest) == path
    assert path.read_bytes() == b"weights"
    assert path.stat().st_mode & 0o777 == 0o444
    assert list(store.objects()) == [(artifact.digest, str(path))]
    assert store.state(artifact) == "present"
    assert store.pieces(artifact) == [(str(path), "", 0o644, artifact.digest)]


def test_a_folder_is_its_files_and_a_list_of_them(store: Store) -> None:
    artifact = store.ingest(folder(store))
    assert artifact.kind == "folder"
    assert artifact.size == 6
    assert store.members(artifact) == MEMBERS
    listed = store.object_path(artifact.digest).read_bytes()
    assert digest(listed) == artifact.digest
    files = [{"path": m.path, "digest": m.digest, "size": m.size, "x": m.executable} for m in MEMBERS]
    assert json.loads(listed) == [*files, {"path": "sub/empty/"}]
    assert store.object_path(artifact.digest).stat().st_mode & 0o777 == 0o444
    assert {found for found, _ in store.objects()} == {artifact.digest, *(m.digest for m in MEMBERS)}
    assert store.pieces(artifact) == [
        (str(store.object_path(MEMBERS[0].digest)), "run.sh", 0o755, MEMBERS[0].digest),
        (str(store.object_path(MEMBERS[1].digest)), "sub/data", 0o644, MEMBERS[1].digest),
        ("", "sub/empty/", 0o644, ""),
    ]
    assert store.state(artifact) == "present"
    assert not [path for path in store.new_tmp().rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "listed",
    [
        [{"path": "../../bin/ls", "digest": digest(b"weights"), "size": 7, "x": True}],
        [{"path": "/etc/x", "digest": digest(b"weights"), "size": 7, "x": False}],
        [{"path": "a/../../b/"}],
        [{"path": "a//b", "digest": digest(b"weights"), "size": 7, "x": False}],
        ["a"],
        [{"name": "a"}],
        {"a": 1},
    ],
    ids=str,
)
def test_a_file_that_passes_for_the_list_of_a_folder_writes_nothing(
    store: Store, tmp_path: Path, listed: object
) -> None:
    store.ingest(file(store))
    artifact = store.ingest(file(store, json.dumps(listed).encode(), "listed"))
    place = tmp_path / "in/deep"
    place.mkdir(parents=True)
    with pytest.raises(StoreError, match=rf"the manifest of folder {artifact.digest} is lost or damaged"):
        store.materialise(artifact._replace(kind="folder"), place / "copy")
    assert not [path for path in (tmp_path / "in").rglob("*") if path != place]


def test_a_copy_is_private_and_has_its_files_modes(store: Store, tmp_path: Path) -> None:
    store.materialise(store.ingest(folder(store)), tmp_path / "folder")
    store.materialise(store.ingest(file(store)), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"weights"
    assert (tmp_path / "folder/sub/data").read_bytes() == b"data"
    for name, mode in (("file", 0o644), ("folder/run.sh", 0o755), ("folder/sub/data", 0o644)):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
        (tmp_path / name).write_bytes(b"changed")
    assert verify(store).ok


def test_an_empty_folder_is_a_folder(store: Store, tmp_path: Path) -> None:
    (store.new_tmp() / "empty").mkdir()
    artifact = store.ingest(store.new_tmp() / "empty")
    assert (artifact.kind, artifact.size, store.members(artifact)) == ("folder", 0, [])
    store.materialise(artifact, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_empty_folders_in_a_folder_are_kept_and_others_are_not_listed(store: Store, tmp_path: Path) -> None:
    made = folder(store)
    (made / "sub/empty").rmdir()
    for name in ("sub/none/deep", "a", "sub-b"):
        (made / name).mkdir(parents=True)
    artifact = store.ingest(made)
    listed = json.loads(store.object_path(artifact.digest).read_bytes())
    assert [row for row in listed if "digest" not in row] == [
        {"path": "a/"}, {"path": "sub-b/"}, {"path": "sub/none/deep/"}
    ]  # fmt: skip
    assert store.members(artifact) == MEMBERS
    assert store.state(artifact) == "present"
    store.materialise(artifact, tmp_path / "copy")
    assert {p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*")} == {
        "a", "sub-b", "sub", "sub/none", "sub/none/deep", "sub/data", "run.sh"
    }  # fmt: skip
    (tmp_path / "copy/a/x").write_bytes(b"")
    (tmp_path / "copy/a/x").unlink()
    assert store.digest_path(str(tmp_path / "copy"), str(tmp_path)) == artifact
    (tmp_path / "copy/a").rmdir()
    assert store.digest_path(str(tmp_path / "copy"), str(tmp_path)) != artifact


def test_only_the_owners_right_to_execute_counts(store: Store, tmp_path: Path) -> None:
    made, project = file(store), tmp_path / "project/file"
    project.parent.mkdir()
    project.write_bytes(b"weights")
    made.chmod(0o7744)
    artifact = store.ingest(made)
    assert artifact == Artifact(digest(b"weights"), "file", 7, executable=True)
    store.materialise(artifact, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o7777 == 0o755
    for mode in (0o755, 0o775, 0o700, 0o4711, 0o644, 0o611):
        project.chmod(mode)
        assert store.digest_path(str(project), str(project.parent)).executable is bool(mode & 0o100)
    again = file(store)
    again.chmod(0o611)
    assert store.ingest(again) == artifact._replace(executable=False)


def test_what_is_there_already_is_kept_and_what_came_again_is_gone(store: Store) -> None:
    artifact = store.ingest(file(store))
    inode = store.object_path(artifact.digest).stat().st_ino
    again = file(store, name="again")
    assert store.ingest(again) == artifact
    assert not again.exists()
    assert store.object_path(artifact.digest).stat().st_ino == inode
    listed = store.ingest(folder(store))
    inode = store.object_path(listed.digest).stat().st_ino
    assert store.ingest(folder(store, "again")) == listed
    assert store.object_path(listed.digest).stat().st_ino == inode


@pytest.mark.parametrize("damage", ["longer", "flipped", "link", "folder", "full folder"])
def test_what_is_damaged_is_seen_and_replaced(store: Store, tmp_path: Path, damage: str) -> None:
    artifact = store.ingest(file(store))
    path = store.object_path(artifact.digest)
    if damage in ("longer", "flipped"):
        spoil(path, b"weights!" if damage == "longer" else b"weightz")
    else:
        path.unlink()
        if damage == "link":
            (tmp_path / "same").write_bytes(b"weights")
            path.symlink_to(tmp_path / "same")
        else:
            path.mkdir()
            if damage == "full folder":
                (path / "x").touch()
    assert store.state(artifact) == "damaged"
    with pytest.raises(StoreError, match=rf"\Aobject {artifact.digest} is lost or damaged \(run again\)\Z"):
        store.materialise(artifact, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert store.ingest(file(store)) == artifact
    assert store.state(artifact) == "present"
    assert path.is_file()
    assert not path.is_symlink()


def test_an_artifact_of_another_size_is_not_this_one(store: Store) -> None:
    artifact = store.ingest(file(store))
    assert store.state(artifact._replace(size=8)) == "damaged"
    assert store.state(Artifact("0" * 64, "file", 7)) == "missing"


def test_a_folder_is_as_sound_as_the_worst_of_its_files(store: Store) -> None:
    artifact = store.ingest(folder(store))
    for member in MEMBERS:
        path = store.object_path(member.digest)
        data = path.read_bytes()
        spoil(path, data + b"!")
        assert store.state(artifact) == "damaged"
        path.unlink()
        assert store.state(artifact) == "missing"
        path.write_bytes(data)
        assert store.state(artifact) == "present"


def test_a_folder_whose_list_is_lost_can_not_be_read(store: Store) -> None:
    artifact = store.ingest(folder(store))
    path = store.object_path(artifact.digest)
    said = rf"\Athe manifest of folder {artifact.digest} is lost or damaged \(run again to rebuild it\)\Z"
    spoil(path, path.read_bytes().replace(b"run.sh", b"run.py"))
    assert store.state(artifact) == "damaged"
    with pytest.raises(StoreError, match=said):
        store.members(artifact)
    path.unlink()
    assert store.state(artifact) == "missing"
    with pytest.raises(StoreError, match=said):
        store.pieces(artifact)


def test_a_store_says_what_it_has_and_what_it_lacks(store: Store) -> None:
    artifact, listed = store.ingest(file(store)), store.ingest(folder(store))
    record = ActionRecord("k" * 64, "a.b", {"file": artifact, "folder": listed}, {}, {})
    assert store.find(record.key) is None
    store.records.put(record)
    assert store.find(record.key) == record
    assert store.fetch(artifact)
    assert store.lack_of(record) == ""
    store.object_path(MEMBERS[1].digest).unlink()
    assert store.lack_of(record) == "the output `folder` is missing in the store"
    spoil(store.object_path(artifact.digest), b"weightz")
    assert store.lack_of(record) == "the output `file` is damaged in the store"
    assert not store.fetch(artifact)
    assert store.problem(record.key) == ""
    (store.home / "actions/kk" / f"{'k' * 62}.json").write_bytes(b"{}")
    assert store.find(record.key) is None
    said = "its action record is damaged"
    assert (store.problem(record.key), store.problem("j" * 64)) == (said, "")


def test_a_store_that_is_not_shared_builds_everything_itself(store: Store) -> None:
    assert (store.shares, store.reaches_all, store.claim("k" * 64)) == (False, True, "ours")


WEIGHTS = digest(b"weights")


def replaced(store: Store, instead: bytes | None) -> bool:
    """Have an object written whose temporary name is another file's, or a link's, by the time it is placed."""

    def write(fd: int) -> str:
        os.write(fd, b"weights")
        (name,) = [path for path in store.new_tmp().iterdir() if path.name.startswith(WEIGHTS)]
        name.unlink()
        if instead is None:
            name.symlink_to(file(store))
        else:
            name.write_bytes(instead)
        return WEIGHTS

    return store.place(WEIGHTS, write)


@pytest.mark.parametrize("instead", [b"malware", None])
def test_only_the_file_that_was_hashed_becomes_an_object(store: Store, instead: bytes | None) -> None:
    with pytest.raises(
        StoreError, match=rf"\Aoutput .*{WEIGHTS}-[0-9a-f]+ was replaced while it was taken\Z"
    ):
        replaced(store, instead)
    assert list(store.objects()) == []
    assert not [path for path in store.new_tmp().iterdir() if path.name != "made"]


def test_an_equal_object_that_another_run_has_placed_is_kept(store: Store) -> None:
    assert replaced(store, b"weights")
    assert store.state(Artifact(WEIGHTS, "file", 7)) == "present"


def test_what_is_not_the_object_that_was_asked_for_is_not_placed(store: Store) -> None:
    """As from a shared cache that answers with something else."""

    def write(fd: int) -> str:
        os.write(fd, b"malware")
        return digest(b"malware")

    assert not store.place(WEIGHTS, write)
    assert list(store.objects()) == []
    assert list(store.new_tmp().iterdir()) == []


@pytest.mark.parametrize("deep", [False, True])
def test_what_can_not_be_kept_is_refused_by_name(store: Store, tmp_path: Path, deep: bool) -> None:
    (tmp_path / "outside").write_text("x")
    base = store.new_tmp() / "made" if deep else store.new_tmp()
    base.mkdir(exist_ok=True)
    name = "x"
    path, taken = base / name, base if deep else base / name
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=rf"\Aoutput {name} is a symbolic link \(write a copy instead\)\Z"):
        store.ingest(taken)
    path.unlink()
    os.link(tmp_path / "outside", path)
    with pytest.raises(StoreError, match=rf"\Aoutput {name} is a hard link \(write a copy instead\)\Z"):
        store.ingest(taken)
    path.unlink()
    (base / "a\nb").touch()
    with pytest.raises(StoreError, match=re.escape(r"'a\nb' has a name that can't be stored")):
        store.ingest(base if deep else base / "a\nb")
    assert list(store.objects()) == []


def test_what_is_not_there_can_not_be_taken(store: Store) -> None:
    with pytest.raises(StoreError, match=r"\Anone: No such file or directory\Z"):
        store.ingest(store.new_tmp() / "none")


def test_a_files_digest_is_taken_without_storing_it(store: Store, tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "data").write_bytes(b"data")
    (tmp_path / "folder/sub/empty").mkdir(parents=True)
    (tmp_path / "folder/run.sh").write_bytes(b"#!")
    (tmp_path / "folder/run.sh").chmod(0o755)
    (tmp_path / "folder/sub/data").write_bytes(b"data")
    assert store.digest_path(f"{root}/data", root) == Artifact(digest(b"data"), "file", 4)
    found = store.digest_path(f"{root}/folder", root)
    assert list(store.objects()) == []
    assert found == store.ingest(folder(store))
    (tmp_path / "folder/run.sh").chmod(0o644)
    assert store.digest_path(f"{root}/folder", root) != found


def test_a_path_that_is_no_input_is_refused(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    with pytest.raises(FileNotFoundError, match="No such file"):
        store.digest_path(f"{root}/none", str(root))
    os.mkfifo(root / "pipe")
    with pytest.raises(
        StoreError,
        match=rf"\A{root}/pipe is neither a file nor a folder \(use the path of a regular file\)\Z",
    ):
        store.digest_path(f"{root}/pipe", str(root))
    (root / "out").symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="out points outside the project"):
        store.digest_path(f"{root}/out", str(root))
    inside = Store(root / ".deploy-runner")
    name = f"{root}/.deploy-runner/secret"
    inside.records.seal.secret()
    with pytest.raises(
        StoreError, match=rf"\A{name} belongs to the store and can't be an input \(use .* instead\)\Z"
    ):
        inside.digest_path(name, str(root))
    beside = Store(tmp_path / "beside", protected=root / ".deploy-runner")
    with pytest.raises(StoreError, match="belongs to the store and can't be an input"):
        beside.digest_path(name, str(root))


def test_what_a_store_lacks_is_read_from_the_protected_one(tmp_path: Path) -> None:
    protected = Store(tmp_path / "protected")
    artifact = protected.ingest(file(protected))
    kept = ActionRecord("k" * 64, "a.b", {"o": artifact}, {}, {})
    protected.records.put(kept)
    protected.close()
    before = sorted(protected.home.rglob("*"))
    store = Store(tmp_path / "own", protected=protected.home)
    assert store.homes == [str(tmp_path / "own"), str(tmp_path / "protected")]
    assert protected.homes == [str(tmp_path / "protected")]
    assert store.object_path(artifact.digest) == protected.object_path(artifact.digest)
    assert store.records.get("k" * 64) == kept
    assert store.state(artifact) == "present"
    assert store.pieces(artifact)[0][0] == str(protected.object_path(artifact.digest))
    made = file(store)
    assert store.ingest(made) == artifact
    assert not made.exists()
    assert list(store.objects()) == []
    assert store.object_path("0" * 64) == tmp_path / "own/cas/sha256/00" / ("0" * 62)
    path = protected.object_path(artifact.digest)
    spoil(path, b"weightz")
    assert store.ingest(file(store)) == artifact
    assert store.object_path(artifact.digest) == tmp_path / "own/cas/sha256" / path.parent.name / path.name
    assert store.state(artifact) == "present"
    assert path.read_bytes() == b"weightz"
    assert [p for p in sorted(protected.home.rglob("*")) if "stat.sqlite" not in p.name] == [
        p for p in before if "stat.sqlite" not in p.name
    ]


def test_what_stands_where_the_stores_folders_belong_gives_way(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home/cas").symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "home")
    artifact = store.ingest(file(store))
    shard = store.object_path(artifact.digest).parent
    other = store.ingest(file(store, b"other"))
    assert not list((tmp_path / "elsewhere").iterdir())
    store.object_path(other.digest).unlink()
    store.object_path(other.digest).parent.rmdir()
    store.object_path(other.digest).parent.symlink_to(tmp_path / "elsewhere")
    assert store.ingest(file(store, b"other")) == other
    assert not list((tmp_path / "elsewhere").iterdir())
    assert store.state(other) == "present"
    assert shard.is_dir()
