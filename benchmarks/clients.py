"""Keep-alive clients that check every answer, and notice a model that comes back after its successor."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field

from .digits import Question

__all__ = ["Clients", "Witness"]

REPLY_SECONDS = 30


@dataclass(slots=True)
class Witness:
    """Says of each answer whether the model that gave it may have: numbers as in `Question.answers`.

    `wanted` is the model that was put in place last. Once it has answered anybody, the one before may
    answer only what was sent earlier. Times are those of `time.monotonic`, in seconds.
    """

    wanted: int = 0
    serving: int = 0
    since_s: float = 0.0
    reloads: int = 0
    _before: int | None = None

    def accepts(self, model: int | None, sent_s: float) -> bool:
        """Take note of an answer of a model; None is none of them, or a mix."""
        if model == self.serving:
            return True
        if model is not None and model == self.wanted:
            self._before, self.serving, self.since_s = self.serving, model, time.monotonic()
            self.reloads += 1
            return True
        return model is not None and model == self._before and sent_s < self.since_s


@dataclass(slots=True)
class Clients:
    """Ask a server on 127.0.0.1 the same question from many connections at once."""

    port: int
    question: Question
    witness: Witness = field(default_factory=Witness)
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    _known: dict[bytes, int | None] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Return how many requests got no answer, a refusal or a wrong answer."""
        return self.failures.total()

    async def press(self, count: int, seconds: float) -> None:
        """Ask from `count` connections until the time is over."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._client(until))

    async def _client(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                await self._connection(until)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                self.failures[f"{type(error).__name__}: {error}"] += 1
                await asyncio.sleep(0.1)

    async def _connection(self, until: float) -> None:
        """Send one request after the other; raise on the first that isn't answered well-formed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self.question.body)}\r\n\r\n"
        )
        request = head.encode() + self.question.body
        with contextlib.closing(writer):
            while time.monotonic() < until:
                sent_s = time.monotonic()
                writer.write(request)
                async with asyncio.timeout(REPLY_SECONDS):
                    status, body = await _reply(reader)
                self._judge(status, body, sent_s)

    def _judge(self, status: str, body: bytes, sent_s: float) -> None:
        if status != "200":
            self.failures[f"status {status}: {body[:200]!r}"] += 1
        elif not self.witness.accepts(self._model_of(body), sent_s):
            self.failures[f"an answer of no model that may answer: {body[:200]!r}"] += 1
        else:
            self.answered += 1

    def _model_of(self, body: bytes) -> int | None:
        """Return the model that an answer is of; replies are few, since batches come in few sizes."""
        if body not in self._known:
            self._known[body] = self.question.answered_by(body)
        return self._known[body]


async def _reply(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read a reply's status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    lengths = [line.partition(":")[2] for line in head if line.startswith("content-length:")]
    return head[0].split()[1], await reader.readexactly(int(lengths[0]))
