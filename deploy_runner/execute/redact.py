"""Keep secrets out of everything written: raw, base64 and URL-encoded."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

__all__ = ["Redactor"]

_SHORTEST = 4
_CHUNK_BYTES = 4 << 20


class Redactor:
    """Replaces the values of secrets by `[secret NAME]`.

    A value of fewer than four characters is not looked for: it would be found everywhere.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._names: dict[str, str] = {}
        for name, value in secrets.items():
            if len(value) >= _SHORTEST:
                self._names |= dict.fromkeys(_forms(value), name)
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

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

    def found_in(self, path: Path) -> str:
        """Return the name of a secret that stands in a file of whatever size, or nothing."""
        forms = {form.encode(): name for form, name in self._names.items()}
        if not forms:
            return ""
        overlap, data = max(map(len, forms)) - 1, b""
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                data = data[-overlap:] + chunk
                for form, name in forms.items():
                    if form in data:
                        return name
        return ""


def _forms(value: str) -> Iterator[str]:
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
