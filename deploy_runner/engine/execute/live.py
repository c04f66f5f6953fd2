"""What a live push gets of the runner's environment, and what of it nobody may read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
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
_MOST_TOKEN = 4096


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
    found |= _token_in(live.get("HF_TOKEN_PATH", ""))
    proxies = {
        name: urlsplit(value).password for name, value in live.items() if name.upper().endswith("_PROXY")
    }
    return found | {name: unquote(password) for name, password in proxies.items() if password}


def _token_in(path: str) -> dict[str, str]:
    """Return the token that a file holds, by the name of its variable; nothing where it can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return {"HF_TOKEN_PATH": file.read(_MOST_TOKEN).strip()}
    except (OSError, ValueError):
        return {}
