"""What is wrong with a request, and with which status it is answered.

Refused             status, problems, headers
├── BadRequest 400  no JSON, no array
├── Late       408  it didn't arrive in time
├── TooLarge   413  more bytes than are taken
├── Unknown    415  a content type that isn't read
│   └── UnknownEncoding  a content encoding that isn't
├── Unreadable 406  no response type of those that are accepted can be written
├── Invalid    422  it can be read, but the model can't take it
├── QueueFull  429  too much is waiting
├── HeadTooLarge 431  more header fields, or bytes of them, than are taken
├── Overdue    503  it waited too long
├── TimedOut   504  the model took too long
└── ModelError 500  the model failed

UnfitArtifact       what was to be served can't be
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "BadRequest",
    "HeadTooLarge",
    "Invalid",
    "Late",
    "ModelError",
    "Overdue",
    "Problem",
    "QueueFull",
    "Refused",
    "TimedOut",
    "TooLarge",
    "UnfitArtifact",
    "Unknown",
    "UnknownEncoding",
    "Unreadable",
]


class Problem(NamedTuple):
    """One thing that is wrong: where in the request, and what."""

    loc: tuple[str | int, ...]
    msg: str


class Refused(Exception):
    """The base of all refusals of a request."""

    status = 500
    retry_after_s = 0

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(p.msg for p in problems))
        self.problems: Sequence[Problem] = problems


class BadRequest(Refused):
    """The body can't be read."""

    status = 400


class Unreadable(Refused):
    """No response type of those that are accepted can be written."""

    status = 406


class Late(Refused):
    """The request didn't arrive in time."""

    status = 408


class TooLarge(Refused):
    """The body has more bytes than are taken."""

    status = 413


class Unknown(Refused):
    """The content type isn't read."""

    status = 415


class UnknownEncoding(Unknown):
    """The content encoding isn't read."""


class Invalid(Refused):
    """The body can be read, but the model can't take it."""

    status = 422


class QueueFull(Refused):
    """Too many samples are waiting."""

    status = 429
    retry_after_s = 1


class HeadTooLarge(Refused):
    """There are more header fields, or bytes of them, than are taken."""

    status = 431


class Overdue(Refused):
    """The request waited for its turn until its time was over."""

    status = 503
    retry_after_s = 1


class TimedOut(Refused):
    """The model took longer than the request had."""

    status = 504


class ModelError(Refused):
    """The model failed."""

    status = 500


class UnfitArtifact(Exception):
    """What was to be served can't be; `fix` says what to do."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(f"{message} ({fix})" if fix else message)
