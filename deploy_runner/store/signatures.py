"""Sign what a shared cache is trusted for, and check what others have signed.

Ed25519 (RFC 8032), not an HMAC: whoever can check an HMAC can forge one, so each laptop and each pull
request that reads the cache would hold the secret by which it could be poisoned. A public key may stand in
the pipeline. The private key is derived from `DEPLOY_RUNNER_CACHE_KEY`, the secret that the store has.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["SHORTEST_SECRET", "Signatures"]

SHORTEST_SECRET = 32
"""A shorter secret could be guessed from the public key, by trying."""

_PREFIX = "ed25519:"
_PURPOSE = b"deploy-runner: records of a shared cache"
_HEAD_BYTES = 2 * 64 + 1


class Signatures:
    """The keys of one machine: those it trusts, and its own, if it has one."""

    def __init__(self, public_keys: Sequence[str], environ: Mapping[str, str]) -> None:
        secret = environ.get("DEPLOY_RUNNER_CACHE_KEY", "")
        self._private = _private_key(secret) if len(secret) >= SHORTEST_SECRET else None
        self._trusted = [_public_key(text) for text in public_keys]
        if self._private is not None:
            self._trusted.append(self._private.public_key())

    @property
    def can_sign(self) -> bool:
        """Say whether this machine has a secret to sign by."""
        return self._private is not None

    @property
    def can_check(self) -> bool:
        """Say whether this machine trusts any key."""
        return bool(self._trusted)

    @property
    def public_key(self) -> str:
        """The public key of this machine's secret, as `public_keys` takes it; nothing without one."""
        if self._private is None:
            return ""
        return _PREFIX + base64.b64encode(self._private.public_key().public_bytes_raw()).decode()

    def signed(self, body: bytes, kind: str, name: str) -> bytes:
        """Return a body with the signature over its kind, name and content on a line before it."""
        assert self._private is not None
        return b"%s\n%s" % (self._private.sign(_text(body, kind, name)).hex().encode(), body)

    @staticmethod
    def claimed(data: bytes) -> bytes:
        """Return what somebody says to have signed, without a check."""
        return data[_HEAD_BYTES:]

    def opened(self, data: bytes, kind: str, name: str) -> bytes | None:
        """Return what a trusted key signed as this kind under this name, or None."""
        from cryptography.exceptions import InvalidSignature

        head, body = data[:_HEAD_BYTES], data[_HEAD_BYTES:]
        try:
            signature = bytes.fromhex(head[:-1].decode("ascii"))
        except ValueError:
            return None
        for key in self._trusted if head[-1:] == b"\n" else ():
            try:
                key.verify(signature, _text(body, kind, name))
            except InvalidSignature:
                continue
            return body
        return None


def _text(body: bytes, kind: str, name: str) -> bytes:
    return b"\0".join((kind.encode(), name.encode(), sha256(body).hexdigest().encode()))


def _private_key(secret: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    seed = hmac.digest(secret.encode("utf-8", "surrogateescape"), _PURPOSE, "sha256")
    return Ed25519PrivateKey.from_private_bytes(seed)


def _public_key(text: str) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
        if not text.startswith(_PREFIX):
            raise ValueError
        return Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, binascii.Error):
        raise UsageError(
            f"cache.public_keys: {text!r} is not a public key such as ed25519:MCowBQYDK2VwAyEA…=",
            fix="`deploy-runner cache status` prints the one of the machine that pushes",
        ) from None
