"""HTTP/1.1 as it is on the wire: heads, and bodies with their framing, nothing of them changed."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Literal

__all__ = ["CHUNK_BYTES", "Rows", "Wire", "encode", "framing_of", "head_of", "named", "reset"]

Rows = list[tuple[str, str]]
Framing = int | Literal["chunked", "close"]

CHUNK_BYTES = 1 << 18
_HEAD_BYTES = 1 << 16


class Wire:
    """A socket that is read by lines and by sizes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._buffer = b""

    def until(self, mark: bytes) -> bytes:
        """Return everything up to and with `mark`; EOFError where the peer has closed before it."""
        while mark not in self._buffer:
            if len(self._buffer) > _HEAD_BYTES:
                raise ValueError("a head without an end")
            data = self.sock.recv(CHUNK_BYTES)
            if not data:
                raise EOFError
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(mark)
        return found + mark

    def some(self, most: int) -> bytes:
        """Return what is there, up to `most` bytes; nothing where the peer has closed."""
        if self._buffer:
            found, self._buffer = self._buffer[:most], self._buffer[most:]
            return found
        return self.sock.recv(min(most, CHUNK_BYTES))

    def body(self, framing: int | Literal["chunked", "close"]) -> Iterator[bytes]:
        """Yield a body's bytes as they are on the wire, chunk headers included."""
        if framing == "chunked":
            yield from self._chunks()
            return
        left = framing if isinstance(framing, int) else 1 << 62
        while left:
            data = self.some(left)
            if not data:
                if framing == "close":
                    return
                raise EOFError
            left -= len(data)
            yield data

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self.until(b"\r\n")
            yield line
            size = int(line.split(b";")[0], 16)
            if not size:
                break
            yield from self.body(size + 2)
        while True:
            trailer = self.until(b"\r\n")
            yield trailer
            if trailer == b"\r\n":
                return


def head_of(data: bytes) -> tuple[str, Rows]:
    line, *rows = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    split = (row.partition(":") for row in rows)
    return line, [(name, value.strip()) for name, _, value in split]


def named(rows: Rows) -> dict[str, str]:
    return {name.lower(): value for name, value in rows}


def encode(line: str, rows: Rows) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in rows)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def framing_of(
    headers: dict[str, str], *, default: int | Literal["close"]
) -> int | Literal["chunked", "close"]:
    """Return a body's length, or how else its end is known; `headers` have small letters."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return "chunked"
    return int(headers["content-length"]) if "content-length" in headers else default


def reset(sock: socket.socket) -> None:
    """Close with RST: what the peer sees when a server or a middlebox has died."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return
    sock.close()
