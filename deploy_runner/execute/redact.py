"""Keep secrets out of everything written: raw, base64 and URL-encoded."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, quote_plus

__all__ = ["Redactor"]

_SHORTEST = 4
_SHORTEST_LINE = 16
_CHUNK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_MOST_UNPACKED_BYTES = 1 << 30


class Redactor:
    """Replaces the values of secrets by `[secret NAME]`.

    A value of fewer than four characters is not looked for: it would be found everywhere.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names: dict[str, str] = {}
        for name, value in secrets.items():
            if len(value.strip()) >= _SHORTEST:
                self._names |= dict.fromkeys(_forms(value), name)
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __bool__(self) -> bool:
        """Say whether there is anything to look for."""
        return bool(self._names)

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: f"[secret {self._names[found.group()]}]", text)

    def json(self, value: Any) -> Any:
        """Return a JSON value without secrets, in keys too."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(k): self.json(v) for k, v in value.items()}
        return [self.json(v) for v in value] if isinstance(value, list) else value

    def found_in(self, path: Path, name: str) -> str:
        """Return the name of a secret that stands in a file, or in the `name` it has, or nothing.

        A file packed by gzip is looked through unpacked too, its first GiB.
        """
        if not self._names:
            return ""
        if named := self._search(name.encode("utf-8", "surrogateescape")):
            return named
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            found = self._search_stream(file)
            if packed and not found:
                file.seek(0)
                found = self._search_packed(file)
        return found

    def _search_packed(self, file: BinaryIO) -> str:
        import gzip
        import zlib

        with gzip.GzipFile(fileobj=file) as unpacked:
            try:
                return self._search_stream(unpacked, _MOST_UNPACKED_BYTES)  # type: ignore[arg-type]
            except (OSError, EOFError, zlib.error):
                return ""  # It is damaged from here on, and nobody can unpack it further.

    def _search_stream(self, file: BinaryIO, most_bytes: int | None = None) -> str:
        overlap = max(len(form.encode()) for form in self._names) - 1
        before, seen = b"", 0
        while chunk := file.read(_CHUNK_BYTES):
            if found := self._search(before + chunk):
                return found
            before, seen = (before + chunk)[-overlap:], seen + len(chunk)
            if most_bytes is not None and seen >= most_bytes:
                break
        return ""

    def _search(self, data: bytes) -> str:
        return next((name for form, name in self._names.items() if form.encode() in data), "")


def _forms(value: str) -> Iterator[str]:
    """Yield how a secret may look in a text, each line of one of several lines for itself."""
    lines = [line.strip() for line in value.splitlines()] if "\n" in value.strip() else []
    for part in (value, value.strip(), *lines):
        whole = part in (value, value.strip())
        if whole or (len(part) >= _SHORTEST_LINE and not part.startswith("-----")):
            yield from _encoded(part)


def _encoded(value: str) -> Iterator[str]:
    yield value
    yield quote(value, safe="")
    yield quote_plus(value)
    yield json.dumps(value)[1:-1]
    raw = value.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            yield from _inner(encode, raw, offset)
    yield raw.hex()


def _inner(encode: Any, raw: bytes, offset: int) -> Iterator[str]:
    """Yield the part of a base64 text that depends on `raw` alone, `offset` bytes into a text."""
    text = encode(b"\0" * offset + raw).decode()
    start = (0, 2, 3)[offset]
    spare = (offset + len(raw)) % 3
    end = len(text) - (0, 3, 2)[spare]
    if end - start >= 2 * _SHORTEST:
        yield text[start:end]
