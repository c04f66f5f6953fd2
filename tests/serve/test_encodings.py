"""Bodies with a Content-Encoding: read within the limit of size, whatever it promises."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from deploy_runner.server.encodings import decoded
from deploy_runner.server.problems import TooLarge
from tests.serve.server import Server

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BODY = json.dumps({"inputs": [[0.5] * 64]}).encode()
LIMIT = 64 << 10


def bare(data: bytes) -> bytes:
    """Deflate without zlib's header, as some clients do."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


PACK: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZIP", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare),
    "zstd": ("zstd", zstd.compress),
    "identity": ("identity", bytes),
}
PACKED = [name for name in PACK if name != "identity"]


def predict(server: Server, raw: bytes, encoding: str, path: str = "/predict") -> Any:
    return server.ask("POST", path, raw=raw, headers={"Content-Encoding": encoding})


@pytest.mark.parametrize("name", PACK)
def test_a_packed_body_is_answered_as_the_plain_one(server: Server, name: str) -> None:
    encoding, pack = PACK[name]
    answer = predict(server, pack(BODY), encoding)
    assert (answer.status, answer.json) == (200, server.ask("POST", "/predict", raw=BODY).json)


def test_the_protocol_takes_packed_bodies_too(server: Server) -> None:
    tensor = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    body = json.dumps({"inputs": [tensor]}).encode()
    path = "/v2/models/digits/infer"
    assert predict(server, zstd.compress(body), "zstd", path).json == server.ask("POST", path, raw=body).json
    assert list(predict(server, b"x", "br", path).json) == ["error"]


@pytest.mark.parametrize("name", PACKED)
def test_what_unpacks_to_more_than_the_limit_is_a_413(server: Server, name: str) -> None:
    encoding, pack = PACK[name]
    bomb = pack(b" " * (50 << 20))
    assert len(bomb) < LIMIT
    answer = predict(server, bomb, encoding)
    assert (answer.status, answer.problems) == (413, [f"the body unpacks to more than {LIMIT} bytes"])


@pytest.mark.parametrize("name", PACKED)
def test_the_limit_itself_is_taken(name: str) -> None:
    encoding, pack = PACK[name]
    assert decoded(pack(b"a" * 100), encoding, 100) == b"a" * 100
    with pytest.raises(TooLarge, match="the body unpacks to more than 99 bytes"):
        decoded(pack(b"a" * 100), encoding, 99)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "exi"])
def test_another_encoding_is_a_415_that_says_which_are_read(server: Server, encoding: str) -> None:
    answer = predict(server, BODY, encoding)
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip, deflate, zstd")
    assert answer.problems == [f"the encoding {encoding!r} is not supported, use gzip, deflate or zstd"]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda packed: packed[:-1], id="cut off"),
        pytest.param(lambda packed: b"", id="empty"),
        pytest.param(lambda packed: packed * 2, id="twice"),
        pytest.param(lambda packed: b"{}" + packed, id="something else"),
    ],
)
def test_a_damaged_body_is_a_400(server: Server, name: str, damage: Callable[[bytes], bytes]) -> None:
    encoding, pack = PACK[name]
    answer = predict(server, damage(pack(BODY)), encoding)
    assert answer.status == 400
    assert answer.problems[0].startswith(f"the body is not {encoding.lower()}: ")


def test_a_window_that_no_server_has_to_keep_is_a_400(server: Server) -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    stream = zstd.ZstdCompressor(options=options)
    packed = stream.compress(BODY) + stream.flush()
    assert predict(server, packed, "zstd").status == 400
