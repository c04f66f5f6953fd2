"""The content-addressed store: objects named by the SHA-256 of their content.

An object under its final name is right or absent: it is hashed and synced before it is renamed
there, and hashed again before use whenever its file has changed since it was last verified. A
folder is a manifest (the canonical JSON of its files' paths, digests, sizes and executable
bits, and of its empty folders' paths), kept as an object itself.
"""

from __future__ import annotations

import os
import stat as stat_module
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from ..errors import StoreError
from ..types import Artifact
from . import folders
from .actions import ActionRecord, Records, listdir
from .copies import Piece, copy_whole
from .files import (
    NEW,
    clear_the_way,
    fsync_folder,
    read_or_none,
    refuse_exhaustion,
    store_error,
    writing,
)
from .folders import Member, manifest, refuse_name, sha256_bytes, stay_inside
from .handles import Entry, entry_of, let_move, open_file, opened, walk_at
from .layout import give_way, make_home, settle, subfolders
from .locks import Lock
from .namespace import beside_others, stores_own
from .removal import remove_tree
from .stat import StatMemo, is_sound, sha256_file, state_of

__all__ = ["Claim", "Presence", "Store"]

Presence = Literal["present", "missing", "damaged"]
Claim = Literal["asked", "ours", "theirs", "made"]
"""asked: no answer yet. ours: make it. theirs: another machine makes it. made: its record is there."""


class Store:
    """The store in one folder, `home`; several processes may use it at once.

    A lost or damaged object is healed by running the stage again that made it: outputs are reproducible,
    so that gives the same bytes, and no second copy of gigabytes is kept for repairs only.

    What it lacks is looked for in the `protected` store, of which nothing is ever changed. Where it `shares`
    a cache with other machines, several keys are better looked up at once.
    """

    shares = False

    def __init__(self, home: Path, *, protected: Path | None = None) -> None:
        self.home = home
        self._objects = f"{os.fspath(home)}/cas/sha256"
        self._protected = protected
        self.records = Records(home, protected=protected)
        self.memo = StatMemo(f"{os.fspath(home)}/stat.sqlite", lambda: self.records.seal.key("memo"))
        self._making_tmp = threading.Lock()
        self._tmp: Path | None = None
        self._tmp_lock: Lock | None = None
        make_home(os.fspath(home))
        settle(os.fspath(home))

    @property
    def homes(self) -> list[str]:
        """Return the folders that the store is in: its own, or all pull requests', and the protected one."""
        return [os.fspath(home) for home in (beside_others(self.home), self._protected) if home]

    # Reading ---------------------------------------------------------------------------------

    def object_path(self, digest: str) -> Path:
        """Return where the object of this digest is, or would be."""
        return Path(self._found(digest))

    def _object(self, digest: str) -> str:
        return f"{self._objects}/{digest[:2]}/{digest[2:]}"

    def _found(self, digest: str) -> str:
        """Return where an object is read from: here, else where it is protected."""
        own = self._object(digest)
        if self._protected is None or os.path.exists(own):
            return own
        there = f"{os.fspath(self._protected)}/cas/sha256/{digest[:2]}/{digest[2:]}"
        return there if os.path.exists(there) else own

    def state(self, artifact: Artifact) -> Presence:
        """Say whether the artifact can be used, hashing what changed since it was verified."""
        state = self._object_state(artifact.digest, artifact.size, artifact.kind == "file")
        if state != "present" or artifact.kind == "file":
            return state
        for member in self.members(artifact):
            state = self._object_state(member.digest, member.size, True)
            if state != "present":
                return state
        return "present"

    def _object_state(self, digest: str, size: int, check_size: bool) -> Presence:
        path = self._found(digest)
        try:
            found = os.lstat(path)
        except OSError:
            return "missing"
        if not stat_module.S_ISREG(found.st_mode):
            return "damaged"
        state = state_of(found)
        if check_size and state[0] != size:
            return "damaged"
        known = self.memo.lookup(path, state)
        if (
            known is None
        ):  # The file has changed since it was last hashed, by damage or by being written again.
            try:
                known = sha256_file(path)
            except OSError as error:
                refuse_exhaustion(error, path)
                return "damaged"
            self.memo.remember(path, state, known)
        return "present" if known == digest else "damaged"

    def look_up(self, keys: Iterable[str]) -> None:
        """Have `find` ready for the records of several keys."""

    def find(self, key: str) -> ActionRecord | None:
        """Return the record of a key, or None where there is none that is sound."""
        return self.records.get(key)

    def problem(self, key: str) -> str:
        """Say why the record of a key was refused, or nothing."""
        return self.records.problem(key)

    def lack_of(self, record: ActionRecord) -> str:
        """Say which output of a record is not available any more, or nothing."""
        for name, artifact in record.outputs.items():
            state = self.state(artifact)
            if state != "present":
                return f"the output `{name}` is {state} in the store"
        return ""

    @property
    def reaches_all(self) -> bool:
        """Say whether no shared cache lies behind that can't be read."""
        return True

    def fetch(self, artifact: Artifact, report: Callable[[int], None] = lambda count: None) -> bool:
        """Say whether an artifact is here to be used; a shared store brings what is missing.

        `report` is told of the bytes that come.
        """
        return self.state(artifact) == "present"

    def begin(self, note: Callable[[str], None]) -> None:
        """Begin a run: `note` is told what the user should know of a shared cache."""

    def finish(self) -> None:
        """End a run: wait for what is on its way to a shared cache, as long as it moves."""

    def give_up(self, key: str) -> None:
        """Take notice that the outputs of a record were not available: it has to be made again."""

    def claim(self, key: str) -> Claim:
        """Say whether this run makes an action. Other machines may, where a cache is shared."""
        return "ours"

    def tell_claims(self, wake: Callable[[], None]) -> None:
        """Have `wake` called from a thread when the answer of `claim` has changed."""

    def settle(self, key: str, record: ActionRecord | None, *, again: bool = False) -> None:
        """Take notice that a claimed action has ended, with this record or without one."""

    def members(self, artifact: Artifact) -> list[Member]:
        """Return the files of a folder artifact. Raises StoreError if its manifest is lost."""
        return [member for member in self._listed(artifact) if member.is_file]

    def _listed(self, artifact: Artifact) -> list[Member]:
        data = read_or_none(self._found(artifact.digest))
        if data is not None and sha256_bytes(data) == artifact.digest:
            with suppress(ValueError):
                return folders.members_in(data)
        raise StoreError(f"the manifest of folder {artifact.digest} is lost or damaged",
                         fix="run again to rebuild it")  # fmt: skip

    def pieces(self, artifact: Artifact) -> list[Piece]:
        """Return what must be copied to have the artifact elsewhere: (object, name, mode, digest).

        The name of a file artifact's only piece is empty.
        """
        found = [Member("", artifact.digest, artifact.size, artifact.executable)]
        if artifact.kind == "folder":
            found = self._listed(artifact)
        return [(self._found(m.digest) if m.is_file else "", m.path, m.mode, m.digest) for m in found]

    def materialise(self, artifact: Artifact, target: Path) -> None:
        """Put a private, writable copy of the artifact at `target`, which must not exist.

        Raises StoreError where the artifact is not sound or the copy can't be written; then nothing is left.
        """
        if self.state(artifact) != "present":
            raise StoreError(f"object {artifact.digest} is lost or damaged", fix="run again")
        copy_whole(self.pieces(artifact), target, folder=artifact.kind == "folder")

    # The project's own files -----------------------------------------------------------------

    def digest_path(self, path: str, root: str) -> Artifact:
        """Return the artifact that a file or folder of the project is, without storing it.

        Unchanged files are not read again. Raises OSError where it can't be read, StoreError
        for a link that leaves `root`, or something that is neither file nor folder.
        """
        stay_inside(path, root)
        if any(stores_own(path, home, root) for home in self.homes):
            raise StoreError(f"{path} belongs to the store and can't be an input",
                             fix="use the output of a stage instead")  # fmt: skip
        return folders.artifact_of(path, self.memo.digest)

    # Writing ---------------------------------------------------------------------------------

    def ingest(self, path: Path) -> Artifact:
        """Take a file or folder into the store; its files are moved.

        Nothing may write to it any more. Raises StoreError for links, devices and names that
        can't be kept, and where the store can't be written.
        """
        with opened(os.fspath(path.parent)) as folder:
            return self.ingest_at(folder, path.name)

    def ingest_at(self, folder: int, name: str) -> Artifact:
        """Take what has a name in an open folder into the store, as `ingest` does; no link is followed."""
        refuse_name(name)
        try:
            entry = entry_of(folder, name)
            if not stat_module.S_ISDIR(entry.stat.st_mode):
                member = self._ingest_file(entry)
                return Artifact(member.digest, "file", member.size, member.executable)
            members, paths = [], []
            with opened(name, folder) as below:
                for found in walk_at(below):
                    refuse_name(found.path)
                    if stat_module.S_ISDIR(found.stat.st_mode):
                        paths.append(f"{found.path}/")
                        continue
                    paths.append(found.path)
                    members.append(self._ingest_file(found))
            members += map(Member, folders.empty_folders(paths))
            artifact = folders.folder_artifact(members)
            self._put_bytes(manifest(members), artifact.digest)
        except OSError as error:
            raise store_error(error, error.filename or name, "leave it readable") from error
        return artifact

    def _ingest_file(self, entry: Entry) -> Member:
        """Move one file to its object: the very file that was hashed, which has no other name."""
        if stat_module.S_ISLNK(entry.stat.st_mode):
            raise StoreError(f"output {entry.shown} is a symbolic link", fix="write a copy instead")
        let_move(entry.folder)
        fd = open_file(entry)
        try:
            st = os.fstat(fd)
            if st.st_nlink != 1:
                raise StoreError(f"output {entry.shown} is a hard link", fix="write a copy instead")
            digest = sha256_file(fd)
            if self._object_state(digest, st.st_size, True) == "present":
                os.unlink(entry.name, dir_fd=entry.folder)
            else:
                with writing(self._object(digest)):
                    os.fchmod(fd, 0o444)
                    # Data, then name, then (by the caller, once every object is placed) the action record:
                    # in this order a loss of power leaves an object without a record, which is garbage, and
                    # not a record without its object, which would have to be healed.
                    os.fsync(fd)
                    self._place(entry.name, digest, folder=entry.folder, file=fd)
                    now = os.fstat(fd)
                    if (now.st_size, now.st_mtime_ns) == (st.st_size, st.st_mtime_ns):
                        self.memo.vouch(self._object(digest), state_of(now), digest)
        finally:
            os.close(fd)
        return Member(entry.path, digest, st.st_size, folders.is_executable(st.st_mode))

    def _place(self, name: str, digest: str, *, folder: int | None = None, file: int) -> None:
        target = self._object(digest)
        shard = os.path.dirname(target)
        give_way(shard)
        os.makedirs(shard, exist_ok=True)
        try:
            os.rename(name, target, src_dir_fd=folder)
        except IsADirectoryError:
            clear_the_way(target)
            os.rename(name, target, src_dir_fd=folder)
        # A rename goes by name: what was hashed is the descriptor, and the name may have been given to
        # another file in between. Only the very file, or another run's equal object, may stay.
        if not os.path.samestat(os.lstat(target), os.fstat(file)) and not is_sound(target, digest):
            os.unlink(target)
            raise StoreError(f"output {name} was replaced while it was taken")
        fsync_folder(shard)

    def _put_bytes(self, data: bytes, digest: str) -> None:
        def write(fd: int) -> str:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            return digest

        if self._object_state(digest, len(data), True) != "present":
            with writing(self._object(digest)):
                self.place(digest, write)

    def place(self, digest: str, write: Callable[[int], str]) -> bool:
        """Have an object written to an open file, and place it if `write` returns its digest.

        Raises OSError.
        """
        path = f"{self.new_tmp()}/{digest}-{os.urandom(4).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            if write(fd) != digest:
                return False
            os.fsync(fd)
            self._place(path, digest, file=fd)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):  # It has been renamed.
                os.unlink(path)
        return True

    # Living together -------------------------------------------------------------------------

    def new_tmp(self) -> Path:
        """Return this process's own folder under `tmp/`, made on first use."""
        with self._making_tmp:  # Transfers of a shared cache write in threads of their own.
            if self._tmp is None:
                name = f"{os.getpid()}-{os.urandom(4).hex()}"
                lock = Lock(f"{os.fspath(self.home)}/tmp/{name}.lock")
                lock.acquire()
                try:
                    os.mkdir(self.home / "tmp" / name, 0o700)
                except OSError as error:
                    lock.release(remove=True)
                    raise store_error(error, self.home / "tmp") from error
                self._tmp, self._tmp_lock = self.home / "tmp" / name, lock
            return self._tmp

    def sweep_tmp(self) -> int:
        """Remove the temporary folders and files whose owners are gone; return how many."""
        tmp = f"{os.fspath(self.home)}/tmp"
        own = self._tmp.name if self._tmp is not None else ""
        names = {name.removesuffix(".lock") for name in listdir(tmp)}
        return sum(self._sweep(f"{tmp}/{name}") for name in names if name != own)

    def _sweep(self, path: str) -> bool:
        """Remove what nobody has locked: a file being written is its own lock, a folder has one."""
        is_file = path.endswith(NEW)
        lock = Lock(path if is_file else f"{path}.lock")
        if not lock.try_acquire():
            return False
        if not is_file:
            remove_tree(Path(path))
        lock.release(remove=True)
        return True

    def lock(self, key: str) -> Lock:
        """Return the lock under which the outputs of one action key are made."""
        return Lock(f"{os.fspath(self.home)}/locks/{key}")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep garbage collection out while a run depends on what it has found."""
        with ExitStack() as stack:
            stack.enter_context(Lock(f"{os.fspath(self.home)}/gc.lock", shared=True))
            if self._protected is not None:
                with suppress(StoreError):  # Nobody has ever used it, or it can't be collected from here.
                    stack.enter_context(
                        Lock(f"{os.fspath(self._protected)}/gc.lock", shared=True, existing=True)
                    )
            stack.callback(self.close)
            yield

    def close(self) -> None:
        """Remove this process's temporary folder and write the memo."""
        self.memo.flush()
        if self._tmp is not None and self._tmp_lock is not None:
            remove_tree(self._tmp)
            self._tmp_lock.release(remove=True)
            self._tmp = self._tmp_lock = None

    # Verifying -------------------------------------------------------------------------------

    def objects(self) -> Iterator[tuple[str, str]]:
        """Yield (digest, path) of every object."""
        for shard in subfolders(self._objects):
            for rest in listdir(f"{self._objects}/{shard}"):
                if len(shard) == 2 and len(rest) == 62:
                    yield shard + rest, f"{self._objects}/{shard}/{rest}"
