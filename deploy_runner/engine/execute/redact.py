"""Keep secrets out of everything written, however they are spelt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ...pipeline.credentials import SHORTEST_SECRET
from .spellings import spellings

__all__ = ["Redactor"]

_CHUNK_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_MOST_UNPACKED_BYTES = 1 << 30


class Redactor:
    """Replaces the values of secrets by `[secret NAME]`.

    A value of fewer than four characters is not looked for: it would be found everywhere.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._exact: dict[bytes, str] = {}
        self._folded: dict[bytes, str] = {}
        for name, value in secrets.items():
            if len(value.strip()) >= SHORTEST_SECRET:
                known = spellings(value)
                self._exact |= dict.fromkeys(known.exact, name)
                self._folded |= dict.fromkeys(known.folded, name)
        self._longest_bytes = max(map(len, (*self._exact, *self._folded)), default=0)
        self._pattern = self._compiled() if self else None

    def __bool__(self) -> bool:
        """Say whether there is anything to look for."""
        return bool(self._exact)

    def _compiled(self) -> re.Pattern[bytes]:
        rows = [(form, re.escape(form)) for form in self._exact]
        rows += [(form, b"(?i:%s)" % re.escape(form)) for form in self._folded]
        longest_first = sorted(rows, key=lambda row: len(row[0]), reverse=True)
        return re.compile(b"|".join(pattern for _, pattern in longest_first))

    def line(self, line: bytes) -> bytes:
        """Return what was printed, in whatever charset, without secrets."""
        if self._pattern is None or not self._search(line):
            return line
        return self._pattern.sub(self._mark, line)

    def _mark(self, found: re.Match[bytes]) -> bytes:
        form = found.group()
        name = self._exact.get(form) or self._folded[form.lower()]
        return f"[secret {name}]".encode()

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        if self._pattern is None:
            return text
        data = text.encode("utf-8", "surrogatepass")
        shown = self.line(data)
        return text if shown is data else shown.decode("utf-8", "replace")

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
        if not self:
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
        before, seen = b"", 0
        while chunk := file.read(_CHUNK_BYTES):
            if found := self._search(before + chunk):
                return found
            before, seen = (before + chunk)[1 - self._longest_bytes :], seen + len(chunk)
            if most_bytes is not None and seen >= most_bytes:
                break
        return ""

    def _search(self, data: bytes) -> str:
        exact, folded = self._shortest
        found = next((name for form, name in exact.items() if form in data), "")
        if not found:
            lower = data.lower()
            found = next((name for form, name in folded.items() if form in lower), "")
        return found

    @cached_property
    def _shortest(self) -> tuple[dict[bytes, str], dict[bytes, str]]:
        """Return the forms that hold no other: where a form stands, what it holds stands too."""
        return _without_longer(self._exact), _without_longer(self._folded)


def _without_longer(names: dict[bytes, str]) -> dict[bytes, str]:
    kept: dict[bytes, str] = {}
    for form in sorted(names, key=len):
        if not any(shorter in form for shorter in kept):
            kept[form] = names[form]
    return kept
