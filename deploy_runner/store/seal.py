"""Authenticate what a store keeps about itself: kind, name and content together, by the store's secret.

Whoever can write the store's folder but doesn't know the secret can make nothing that is trusted: not a
new file, not an old one under another name, not one of a different kind. The secret is
`DEPLOY_RUNNER_CACHE_KEY`, or a file that is made on first use.

A run that only reads a protected store need not know its secret: what it can't write, and nobody but the
store's owner can, is the owner's word already.
"""

from __future__ import annotations

import hmac
import os
import stat as stat_module
from hashlib import sha256
from pathlib import Path

from ..errors import StoreError
from .files import read_existing, read_or_none, store_error, write_atomic, write_once
from .namespace import protected_home

__all__ = ["Seal"]

_SECRET_BYTES = 32
_UNPROTECTED = b"deploy-runner: not of the protected namespace"
_MAC = b',"mac":"%s"}'
_HEAD_BYTES = 2 * 64 + 2


class Seal:
    """The seal of the store in `home`.

    A store beside a protected one has another secret, so that the protected one refuses what it sealed.
    """

    def __init__(self, home: Path, *, writable: bool = True, beside_protected: bool = False) -> None:
        self._home = os.fspath(home)
        self._writable = writable
        self._beside_protected = beside_protected
        self._known: bytes | None = None
        self._keyless = False
        self._guarded: dict[str, bool] = {}

    def sealed(self, body: bytes, kind: str, name: str) -> bytes:
        """Return a state file's content: its HMAC and its SHA-256 on a line before the body."""
        digest = sha256(body).hexdigest().encode()
        return b"%s %s\n%s" % (self._mac(kind, name, digest), digest, body)

    def opened(self, data: bytes, kind: str, name: str, path: str = "") -> bytes | None:
        """Return what was sealed as this kind under this name, or None where one bit of it is not so.

        Without the key of a store that is only read, the content counts if nobody but the store's owner,
        who is another, can write the file at `path`.
        """
        head, body = data[:_HEAD_BYTES], data[_HEAD_BYTES:]
        digest = sha256(body).hexdigest().encode()
        if self.secret() is None:
            sound = head[65:] == digest + b"\n" and bool(path) and self._is_guarded(path)
        else:
            sound = hmac.compare_digest(head, b"%s %s\n" % (self._mac(kind, name, digest), digest))
        return body if sound else None

    def is_whole(self, data: bytes) -> bool:
        """Say whether a state file's content is what was sealed, with whichever key and for whatever."""
        return data[65:_HEAD_BYTES] == sha256(data[_HEAD_BYTES:]).hexdigest().encode() + b"\n"

    def signed(self, body: bytes, kind: str, name: str) -> bytes:
        """Return a JSON object's text with its HMAC as the last member, so that it stays JSON."""
        return body[:-1] + _MAC % self._mac(kind, name, sha256(body).hexdigest().encode())

    def signed_body(self, data: bytes, kind: str, name: str) -> bytes | None:
        """Return what `signed` was given for this kind and name, or None where one bit of it is not so."""
        body = data[: -len(_MAC % bytes(64))] + b"}"
        return body if hmac.compare_digest(self.signed(body, kind, name), data) else None

    def key(self, purpose: str) -> bytes:
        """Return a key of 32 bytes for one purpose. Raises StoreError where there is no secret."""
        return hmac.digest(self._secret(), purpose.encode(), "sha256")

    def _mac(self, kind: str, name: str, digest: bytes) -> bytes:
        text = b"\0".join((kind.encode(), name.encode("utf-8", "surrogateescape"), digest))
        return hmac.digest(self._secret(), text, "sha256").hex().encode()

    def _secret(self) -> bytes:
        secret = self.secret()
        if secret is None:
            raise StoreError(f"the key of {self._home} can't be read", fix="set DEPLOY_RUNNER_CACHE_KEY")
        return secret

    def secret(self) -> bytes | None:
        """Return the secret, or None where a store that is only read keeps it from us."""
        if self._known is None and not self._keyless:
            shared = os.environ.get("DEPLOY_RUNNER_CACHE_KEY", "").encode("utf-8", "surrogateescape")
            if shared and self._is_unprotected():
                shared = hmac.digest(shared, _UNPROTECTED, "sha256")
            self._known = shared or self._own_secret()
            self._keyless = self._known is None
        return self._known

    def _is_unprotected(self) -> bool:
        if not self._writable:
            return False
        return self._beside_protected or protected_home(Path(self._home), os.environ) is not None

    def _own_secret(self) -> bytes | None:
        path, tmp = Path(self._home) / "secret", Path(self._home) / "tmp"
        was_there = os.path.lexists(path)  # Before it is read: another run may make it meanwhile.
        known = self._owners_file(path)
        if known is not None or not self._writable:
            return known
        write = write_atomic if was_there else write_once
        write(path, os.urandom(_SECRET_BYTES), mode=0o600, tmp=tmp)
        made = self._owners_file(path)
        if made is None:
            raise StoreError(f"{path} can't be created", fix="set DEPLOY_RUNNER_CACHE_KEY")
        return made

    def _owners_file(self, path: Path) -> bytes | None:
        """Return the secret, unless somebody laid it there who is neither we nor the folder's owner."""
        try:
            found, owner = os.lstat(path), os.stat(path.parent).st_uid
        except OSError:
            return None
        if not stat_module.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), owner, 0):
            return None
        if self._writable and not os.access(path, os.R_OK, effective_ids=True):
            raise store_error(PermissionError(13, "its key belongs to another user"), path)
        # What can't be read now must not be replaced: all that it sealed would be lost. Of a store that is
        # only read the owner may keep it from us.
        data = read_existing(path) if self._writable else read_or_none(path)
        return data if data is not None and len(data) == _SECRET_BYTES else None

    def _is_guarded(self, path: str) -> bool:
        """Say whether nobody but another user, the store's owner, can change a file or its folders."""
        if path not in self._guarded:
            try:
                found, owner = os.lstat(path), os.stat(self._home).st_uid
            except OSError:
                return False
            own = found.st_uid == os.geteuid() or found.st_uid not in (owner, 0)
            open_to_others = stat_module.S_ISLNK(found.st_mode) or found.st_mode & 0o022
            mine = own or open_to_others or os.access(path, os.W_OK, effective_ids=True)
            above = path == self._home or self._is_guarded(os.path.dirname(path))
            self._guarded[path] = not mine and above
        return self._guarded[path]
