"""Secrets of several kinds, spelt by other people's encoders: each is found and none is left readable."""

from __future__ import annotations

import base64
import binascii
import gzip
import html
import json
import re
import shlex
import subprocess
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_runner.engine.execute.redact import Redactor

PEM = "\n".join(
    ["-----BEGIN EC PRIVATE KEY-----", *("MHcCAQEE" + f"{n}Zz/+q" * 7 for n in range(3)), "-----END EC PRIVATE KEY-----", ""]
)  # fmt: skip
SECRETS = {
    "a token": "hf_qWeRtZuIoPaSdFgHjKlYxCvBnM",
    "short": "Pa5$",
    "punctuation": "a%b&c=<d>\"e'f\\g/h?i:j@k~l*m,n+o p",
    "umlauts": "pässwört-ÿ-1",
    "other scripts": "пароль-密码-🔑",
    "a private key": PEM,
    "long": "".join(f"{n:02}kX" for n in range(60)),
}


def tool(*command: str) -> Callable[[str], bytes]:
    return lambda s: subprocess.run(command, input=s.encode(), capture_output=True, check=True).stdout


SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "UTF-16": lambda s: s.encode("utf-16"),
    "UTF-16, big-endian": lambda s: s.encode("utf-16-be"),
    "hex": lambda s: s.encode().hex().encode(),
    "HEX": lambda s: s.encode().hex().upper().encode(),
    "hex with colons": lambda s: s.encode().hex(":").encode(),
    "Hex with spaces": lambda s: s.encode().hex(" ").upper().encode(),
    "hex in pairs": lambda s: s.encode().hex(" ", -2).encode(),
    "bytes of C": lambda s: "".join(f"\\x{byte:02X}" for byte in s.encode()).encode(),
    "an array of C": lambda s: ", ".join(f"0x{byte:02x}" for byte in s.encode()).encode(),
    "base64": lambda s: base64.b64encode(s.encode()),
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(s.encode()).rstrip(b"="),
    "basic authorization": lambda s: base64.b64encode(f"me:{s}".encode()),
    "base64 inside": lambda s: base64.b64encode(f"a text {s} and more".encode()),
    "base64 of a shell": lambda s: base64.b64encode(s.encode("utf-16-le")),
    "base64(1)": tool("base64"),
    "base32": lambda s: base64.b32encode(s.encode()),
    "base32 in lower case": lambda s: base64.b32encode(s.encode()).rstrip(b"=").lower(),
    "base32 inside": lambda s: base64.b32encode(f"text: {s} and more".encode()),
    "base32hex": lambda s: base64.b32hexencode(s.encode()),
    "base32(1)": tool("base32"),
    "percent": lambda s: urllib.parse.quote(s, safe="").encode(),
    "a path": lambda s: urllib.parse.quote(s).encode(),
    "a form": lambda s: urllib.parse.quote_plus(s).encode(),
    "percent in lower case": lambda s: re.sub(
        "%..", lambda found: found[0].lower(), urllib.parse.quote(s, safe="")
    ).encode(),
    "percent, each byte": lambda s: "".join(f"%{byte:02X}" for byte in s.encode()).encode(),
    "percent twice": lambda s: urllib.parse.quote(urllib.parse.quote(s, safe=""), safe="").encode(),
    "encodeURIComponent": lambda s: urllib.parse.quote(s, safe="!*'()").encode(),
    "JSON": lambda s: json.dumps({"a": s}).encode(),
    "JSON in UTF-8": lambda s: json.dumps([s], ensure_ascii=False).encode(),
    "JSON in JSON": lambda s: json.dumps(json.dumps(s)).encode(),
    "HTML": lambda s: html.escape(s).encode(),
    "repr": lambda s: repr(s).encode(),
    "repr of bytes": lambda s: repr(s.encode()).encode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_however_it_is_spelt(tmp_path: Path, secret: str, spelling: str) -> None:
    value = SECRETS[secret]
    if secret == "short" and "inside" in spelling:
        pytest.skip("what depends on so few bytes alone is found everywhere")
    redactor = Redactor({"TOKEN": value})
    told = SPELLINGS[spelling](value)
    shown = b"\n".join(redactor.line(line) for line in (b"<<" + told + b">>").split(b"\n"))
    assert b"[secret TOKEN]" in shown
    rows = [row for row in told.split(b"\n") if row[12:].strip(b"= -")]
    assert not [
        row for row in rows if row in shown and not row.strip(b"\0<\xff\xfe").startswith((b"-----", b"-\0-"))
    ]
    (tmp_path / "file").write_bytes(bytes(1000) + told)
    assert redactor.found_in(tmp_path / "file", "file") == "TOKEN"
    (tmp_path / "file").write_bytes(gzip.compress(told))
    assert redactor.found_in(tmp_path / "file", "file") == "TOKEN"


def test_what_holds_no_secret_stays_as_it_is(tmp_path: Path) -> None:
    redactor = Redactor({name.upper(): value for name, value in SECRETS.items()})
    for text in (
        "[12/40] loss 0.123, ✓ ready",
        "",
        "\ud800 half a character",
        "ÿ".encode("latin-1").decode("utf-8", "replace"),
    ):
        assert redactor.text(text) == text
    noise = b"".join(binascii.crc32(bytes([n % 256, n // 256])).to_bytes(4, "big") for n in range(60_000))
    (tmp_path / "file").write_bytes(
        noise + base64.b64encode(noise) + base64.b32encode(noise) + noise.hex().encode()
    )
    assert redactor.found_in(tmp_path / "file", shlex.quote("a file's name")) == ""
