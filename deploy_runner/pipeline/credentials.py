"""Tell credentials from other variables and texts, and take the secrets that a stage declares.

What a pipeline holds outside `${{ secrets.NAME }}` is printed, hashed and stored. So a credential that
comes another way is refused: by the variable's name, by its value, or by its well-known form.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import cache

from ..errors import StageError

__all__ = ["Credentials", "is_credential", "secret_values"]

_WORDS = frozenset(
    {"TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PWD", "CREDENTIAL", "CREDENTIALS",
     "APIKEY", "AUTHTOKEN", "ACCESSTOKEN", "ACCESSKEY", "SECRETKEY", "PRIVATEKEY", "PAT"}
)  # fmt: skip
_KEYS = frozenset({"ACCESS", "API", "PRIVATE", "SECRET", "SIGNING", "ENCRYPTION", "CACHE", "AUTH", "SSH"})
# What ends so names a thing about a credential, or where it lies.
_ABOUT = frozenset(
    {"PATH", "FILE", "DIR", "ID", "NAME", "ARN", "URL", "URI", "COUNT", "LENGTH", "SIZE", "TTL", "EXPIRY"}
)
# `EOS_TOKEN` is a word of a model's vocabulary.
_VOCABULARY = frozenset(
    {"PAD", "EOS", "BOS", "UNK", "SEP", "CLS", "MASK", "START", "END", "STOP", "SPECIAL", "MAX", "NUM", "PER"}
)
_NEVER = frozenset({"PWD", "OLDPWD", "GOOGLE_APPLICATION_CREDENTIALS"})
_SHORTEST_EQUAL, _SHORTEST_WITHIN = 8, 16
SHORTEST_SECRET = 4
"""A shorter secret can't be kept out of what is written: it would be found everywhere."""


def is_credential(name: str) -> bool:
    """Say whether a variable of this name holds a key, a token or a password.

    A file's path (`HF_TOKEN_PATH`), an identifier (`AWS_ACCESS_KEY_ID`) and a word of a model's
    vocabulary (`EOS_TOKEN`) are none.
    """
    words = [word for word in name.upper().split("_") if word]
    if name.upper() in _NEVER or not words or words[-1] in _ABOUT:
        return False
    pairs = itertools.pairwise(words)
    if any(second == "KEY" and first in _KEYS for first, second in pairs):
        return True
    found = [index for index, word in enumerate(words) if word in _WORDS]
    return any(words[i] != "TOKEN" or i == 0 or words[i - 1] not in _VOCABULARY for i in found)


@cache
def _forms() -> re.Pattern[str]:
    return re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
        r"|\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40}|hf_[A-Za-z]{30}|glpat-[\w-]{20}|xox[abprs]-[\w-]{20})"
        r"|\b(?:sk|rk)[-_](?:live|proj|ant)[-_][\w-]{16}"
        r"|\b\w+://[^/\s:@]*:[^/\s:@]+@(?!sha256:)"
    )


class Credentials:
    """The values of an environment's credentials and of the declared `secrets`.

    Short ones are compared as a whole only, so that a password such as `staging` doesn't forbid the word.
    """

    def __init__(self, environ: Mapping[str, str], secrets: Iterable[str] = ()) -> None:
        declared = set(secrets)
        values = {name: v.strip() for name, v in environ.items() if name in declared or is_credential(name)}
        self._names = {
            value: name
            for name, value in values.items()
            if len(value) >= (SHORTEST_SECRET if name in declared else _SHORTEST_EQUAL)
        }
        self._long = [value for value in self._names if len(value) >= _SHORTEST_WITHIN]

    def held_in(self, text: str) -> str:
        """Return what credential a text is or holds, in words; nothing where it holds none."""
        found = text if text in self._names else next((v for v in self._long if v in text), None)
        if found is not None:
            return f"the value of {self._names[found]}"
        return "a credential" if _forms().search(text) else ""

    def known(self, text: str) -> bool:
        """Say whether a text is one of them, or holds a long one."""
        return text in self._names or any(value in text for value in self._long)


def secret_values(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values of these secrets. Raises StageError for one that is unset, empty or too short.

    An empty one is what a fork's pull request or a misspelt name gives: a result that was made without
    the secret must not be a hit for those who have it.
    """
    values = {}
    for name in names:
        value = environ.get(name, "")
        if not value.strip():
            state = "empty" if name in environ else "not set"
            raise StageError(f"the secret {name} is {state}", fix=f"export {name}=…")
        if len(value.strip().encode("utf-8", "surrogateescape")) < SHORTEST_SECRET:
            raise StageError(
                f"the secret {name} is shorter than {SHORTEST_SECRET} bytes and can't be removed from logs",
                fix="use a longer one",
            )
        values[name] = value
    return values
