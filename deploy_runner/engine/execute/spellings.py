"""The ways in which a secret may stand in a text or a file: as it is, escaped, or encoded."""

from __future__ import annotations

import base64
import html
import itertools
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import quote, quote_plus

__all__ = ["Spellings", "spellings"]

_SHORTEST_LINE = 16
_SHORTEST_INNER = 8
_ROWS = (64, 76)
_SEPARATORS = (":", " ", "-", "\\x", "0x", ", 0x")
_JSON_NEWLINE = "\\n"
# What encodeURIComponent and encodeURI of browsers, and Python's `quote`, leave as it is.
_SAFE = ("", "/", "!*'()", ";,/?:@&=+$!*'()#")


class Spellings(NamedTuple):
    """Sets of bytes to look for: `exact` as they are, `folded` (lower case) in either case."""

    exact: frozenset[bytes]
    folded: frozenset[bytes]


def spellings(value: str) -> Spellings:
    """Return how a secret may be spelt, each line of one of several lines for itself.

    That is: raw in UTF-8, UTF-16 and Latin-1; percent-encoded as browsers, Python and Java do; escaped as
    in JSON, HTML, C and Python; hexadecimal, with separators too; base64 and base32 (RFC 4648) of either
    alphabet, also where it begins inside a longer text, or is broken into rows as base64(1) and PEM do.
    """
    exact: set[bytes] = set()
    folded: set[bytes] = set()
    for part in _parts(value):
        raw = part.encode("utf-8", "surrogateescape")
        exact |= {raw, *_other_charsets(part), *_escaped(part, raw), *_base64(raw), *_rows(raw)}
        exact |= set(_base64(part.encode("utf-16-le", "surrogatepass")))
        texts = {*_percent(raw), *_hex(raw), *_base32(raw)} - {part}
        folded |= {text.lower().encode() for text in texts}
    return Spellings(frozenset(exact), frozenset(folded))


def _parts(value: str) -> Iterator[str]:
    """Yield the whole and its long lines; a key inside JSON has `\\n` between them."""
    yield value
    yield value.strip()
    lines = value.replace(_JSON_NEWLINE, "\n").splitlines()
    for line in map(str.strip, lines if len(lines) > 1 else []):
        if len(line) >= _SHORTEST_LINE and not line.startswith("-----"):
            yield line


def _other_charsets(part: str) -> Iterator[bytes]:
    for charset in ("utf-16-le", "utf-16-be"):
        # What both orders have in common, where all is ASCII.
        yield part.encode(charset, "surrogatepass").strip(b"\0")
    if not part.isascii():
        yield part.encode("latin-1", "replace")


def _escaped(part: str, raw: bytes) -> Iterator[bytes]:
    in_json = json.dumps(part)[1:-1]
    texts = [in_json, in_json.replace("/", "\\/"), json.dumps(in_json)[1:-1]]
    texts += [json.dumps(part, ensure_ascii=False)[1:-1], html.escape(part), html.escape(part, quote=False)]
    texts += [repr(part)[1:-1], repr(raw)[2:-1]]
    return (text.encode("utf-8", "surrogateescape") for text in texts)


def _percent(raw: bytes) -> Iterator[str]:
    for safe in _SAFE:
        yield quote(raw, safe=safe)
    yield quote_plus(raw)
    yield quote_plus(raw, safe="*").replace("~", "%7E")
    yield quote(quote(raw, safe=""), safe="")
    yield "".join(f"%{byte:02x}" for byte in raw)


def _hex(raw: bytes) -> Iterator[str]:
    pairs = [f"{byte:02x}" for byte in raw]
    yield "".join(pairs)
    yield from (separator.join(pairs) for separator in _SEPARATORS)
    for first in (0, 1):  # hexdump and xxd write pairs of bytes.
        ends = [0, *range(first, len(pairs), 2), len(pairs)]
        yield " ".join("".join(pairs[a:b]) for a, b in itertools.pairwise(ends) if a < b)


def _base64(raw: bytes) -> Iterator[bytes]:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield from _inner(encode, raw, 6)


def _base32(raw: bytes) -> Iterator[str]:
    for encode in (base64.b32encode, base64.b32hexencode):
        for text in _inner(encode, raw, 5):
            yield text.decode()


def _inner(encode: Callable[[bytes], bytes], raw: bytes, bits: int) -> Iterator[bytes]:
    """Yield the characters, of `bits` bits each, that depend on `raw` alone, wherever it lies in a text."""
    for offset in range(3 if bits == 6 else 5):
        text = encode(bytes(offset) + raw)
        start, end = -(-8 * offset // bits), 8 * (offset + len(raw)) // bits
        if end - start >= _SHORTEST_INNER:
            yield text[start:end]
        elif not offset:
            yield text.rstrip(b"=")


def _rows(raw: bytes) -> Iterator[bytes]:
    """Yield the rows into which base64(1) and base32(1), and a PEM file, break a text."""
    for whole, width in itertools.product((base64.b64encode(raw), base64.b32encode(raw)), _ROWS):
        rows = (whole[at : at + width] for at in range(0, len(whole), width))
        yield from (row for row in rows if _SHORTEST_LINE <= len(row) < len(whole))
