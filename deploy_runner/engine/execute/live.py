"""What a live push gets of the runner's environment, and what of it nobody may read."""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import unquote, urlsplit

__all__ = ["credentials_of", "live_environment"]

_CLOUD = re.compile(
    r"(AWS|HF|HUGGING_FACE|HUGGINGFACE|MLFLOW)_|REGISTRY_AUTH_FILE\Z|(HTTPS?|NO|ALL)_PROXY\Z", re.IGNORECASE
)
_CREDENTIAL = re.compile(r"(ACCESS_KEY|TOKEN|SECRET|PASSWORD)(?!_PATH|_FILE|_ID)")
_CREDENTIAL_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials",
    "AWS_CONFIG_FILE": ".aws/config",
    "REGISTRY_AUTH_FILE": ".docker/config.json",
}
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_MOST_TOKEN, _MOST_LOGINS = 4096, 1 << 20
_SHORTEST_STORED = 8
"""A shorter password in a file, which may be that of another registry, would be found in what isn't it."""


def live_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a live push gets of the runner's environment: credentials and proxies."""
    env = {name: value for name, value in environ.items() if _CLOUD.match(name)}
    home = environ.get("HOME", "")
    for name, place in _CREDENTIAL_FILES.items():
        if name not in env and home and os.path.exists(f"{home}/{place}"):
            env[name] = f"{home}/{place}"
    if (token := _hub_token(environ)) and os.path.isfile(token):
        env["HF_TOKEN_PATH"] = token
    return env


def _hub_token(environ: Mapping[str, str]) -> str:
    """Return where `hf auth login` puts the token: HF_TOKEN_PATH, or below HF_HOME, XDG_CACHE_HOME or HOME.

    By huggingface_hub's `constants.HF_TOKEN_PATH`; a `~` and variables are those of the runner, not the
    worker's.
    """

    def expanded(path: str) -> str:
        path = f"{home}{path[1:]}" if home and (path == "~" or path.startswith("~/")) else path
        return re.sub(r"\$\{?(\w+)\}?", lambda found: environ.get(found[1], found[0]), path)

    home = environ.get("HOME", "")
    if not home and not any(environ.get(name) for name in ("HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME")):
        return ""
    cache = environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hub = expanded(environ.get("HF_HOME") or f"{cache}/huggingface")
    return os.path.abspath(expanded(environ.get("HF_TOKEN_PATH") or f"{hub}/token"))


def credentials_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of a live push's environment nobody may read: keys, tokens, passwords of proxies."""
    live = live_environment(environ)
    found = {name: value for name, value in live.items() if _CREDENTIAL.search(name)}
    if token := _text_of(live.get("HF_TOKEN_PATH", ""), _MOST_TOKEN):
        found["HF_TOKEN_PATH"] = token
    stored = _logins_in(live.get("REGISTRY_AUTH_FILE", ""))
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        stored |= _keys_in(live.get(name, ""))
    found |= {name: value for name, value in stored.items() if len(value) >= _SHORTEST_STORED}
    proxies = {
        name: urlsplit(value).password for name, value in live.items() if name.upper().endswith("_PROXY")
    }
    return found | {name: unquote(password) for name, password in proxies.items() if password}


def _text_of(path: str, most_bytes: int) -> str:
    """Return what a file holds; nothing where it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(most_bytes).strip()
    except (OSError, ValueError):
        return ""


def _logins_in(path: str) -> dict[str, str]:
    """Return what `docker login` or `podman login` has stored that nobody may read, by its registry."""
    try:
        rows = list(json.loads(_text_of(path, _MOST_LOGINS) or "{}")["auths"].items())
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}  # The push says what is wrong with it.
    return {f"{kind} of {host}": value for host, row in rows for kind, value in _of_login(row)}


def _of_login(row: object) -> Iterator[tuple[str, str]]:
    """Yield what of a registry's row nobody may read: https://pkg.go.dev/github.com/docker/cli/cli/config/types"""
    texts = {k: v for k, v in row.items() if isinstance(v, str)} if isinstance(row, dict) else {}
    if auth := texts.pop("auth", ""):
        yield "login", auth
        with suppress(ValueError):
            texts["password"] = base64.b64decode(auth).decode().partition(":")[2].rstrip("\0")
    for kind in ("password", "identitytoken", "registrytoken"):
        yield kind, texts.get(kind, "")


def _keys_in(path: str) -> dict[str, str]:
    """Return the keys and tokens in a file of AWS's profiles."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(_text_of(path, _MOST_LOGINS))
    except configparser.Error:
        return {}
    return {
        f"{key} of {profile}": value
        for profile in parser.sections()
        for key, value in parser.items(profile)
        if _CREDENTIAL.search(key.upper())
    }
