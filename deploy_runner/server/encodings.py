"""Undo a request's Content-Encoding, gzip, deflate or zstd, within a limit of size.

Source: https://www.rfc-editor.org/rfc/rfc9110#name-content-encoding
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from .problems import BadRequest, Problem, TooLarge, UnknownEncoding
from .reasons import first_line

__all__ = ["decoded"]

_LOC = ("header", "content-encoding")
_GZIP, _ZLIB, _BARE = 31, 15, -15
"""zlib's window bits: the format is named by them."""
_ZSTD_WINDOW = 23
"""8 MiB, all that HTTP allows: https://www.rfc-editor.org/rfc/rfc9659."""


def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body without its encoding. Raises Refused: 415 for another, 413 beyond `max_bytes`."""
    name = encoding.strip().lower()
    if name == "identity":
        return body
    if name not in _DECODERS:
        said = f"the encoding {encoding!r} is not supported, use gzip, deflate or zstd"
        raise UnknownEncoding(Problem(_LOC, said))
    try:
        found, whole = _DECODERS[name](body, max_bytes + 1)
    except ModuleNotFoundError:
        raise UnknownEncoding(Problem(_LOC, "zstd needs backports.zstd, which is not installed")) from None
    except Exception as error:  # zlib.error, and the ZstdError of a module that may not be there.
        raise BadRequest(Problem(("body",), f"the body is not {name}: {first_line(error)}")) from None
    if len(found) > max_bytes:
        raise TooLarge(Problem(("body",), f"the body unpacks to more than {max_bytes} bytes"))
    if not whole:
        raise BadRequest(
            Problem(("body",), f"the body is not {name}: it ends too early, or has more behind its end")
        )
    return found


def _inflate(body: bytes, most: int, window: int) -> tuple[bytes, bool]:
    """Return at most so many bytes, and whether they are all that there is."""
    stream = zlib.decompressobj(window)
    found = stream.decompress(body, most)
    return found, stream.eof and not stream.unused_data


def _gzip(body: bytes, most: int) -> tuple[bytes, bool]:
    return _inflate(body, most, _GZIP)


def _deflate(body: bytes, most: int) -> tuple[bytes, bool]:
    """Inflate zlib's format, or the bare stream that some clients send by this name."""
    try:
        return _inflate(body, most, _ZLIB)
    except zlib.error:
        return _inflate(body, most, _BARE)


def _zstd(body: bytes, most: int) -> tuple[bytes, bool]:
    zstd = _zstd_module()
    stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW})
    found = stream.decompress(body, most)
    return found, stream.eof and not stream.unused_data


def _zstd_module() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


_DECODERS: Mapping[str, Callable[[bytes, int], tuple[bytes, bool]]] = {
    "gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd,
}  # fmt: skip
