"""How long a request may take to arrive, and how large its head may be."""

from __future__ import annotations

from .problems import BadRequest, HeadTooLarge, Late, Problem, Refused, TooLarge
from .routes import Reply, refusal

__all__ = [
    "HEAD_BYTES",
    "HEAD_FIELDS",
    "IDLE_S",
    "head_too_large",
    "late",
    "refused",
    "too_large",
    "unreadable",
]

HEAD_BYTES = 64 << 10
HEAD_FIELDS = 100
"""nginx takes 32 KiB by default, Apache 100 fields."""
IDLE_S = 75
"""A connection without a request is closed then: nginx's default, longer than a load balancer's."""


def late(timeout_s: float) -> Refused:
    """Return the refusal of a request that takes too long to arrive."""
    return Late(Problem(("request",), f"the request didn't arrive within {timeout_s:g} s"))


def head_too_large() -> Refused:
    """Return the refusal of a head with more fields or bytes than are taken."""
    said = f"the headers have more than {HEAD_FIELDS} fields or {HEAD_BYTES} bytes"
    return HeadTooLarge(Problem(("header",), said))


def unreadable(why: str) -> Refused:
    """Return the refusal of what isn't HTTP."""
    return BadRequest(Problem(("request",), why))


def too_large(max_body: int) -> Refused:
    """Return the refusal of a body that has more bytes than are taken."""
    return TooLarge(Problem(("body",), f"the body is larger than {max_body} bytes"))


def refused(why: Refused, path: str) -> Reply:
    """Return a refusal in the words of the protocol that the path belongs to."""
    return refusal(why, protocol_v2=path.startswith("/v2/"))
