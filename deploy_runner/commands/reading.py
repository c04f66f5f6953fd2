"""Read a command line that is spelled out in full, as most are.

argparse reads every other: it knows abbreviations and `--option=value`, and says what is wrong. To load it
and to build its parser takes longer than to plan a hundred stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Declared"]

_KNOWN = frozenset({"action", "choices", "default", "dest", "help", "metavar", "nargs", "required", "type"})


class Declared:
    """What a verb declares by `add_argument`, as to a parser of argparse's."""

    def __init__(self) -> None:
        self._options: dict[str, dict[str, Any]] = {}
        self._arguments: list[dict[str, Any]] = []
        self._defaults: dict[str, Any] = {}
        self._required: set[str] = set()
        self._is_plain = True

    def add_argument(self, *names: str, **settings: Any) -> None:
        """Take an option, or an argument without dashes."""
        action, nargs = settings.get("action", "store"), settings.get("nargs")
        self._is_plain &= action in ("store", "store_true", "append") and nargs in (None, "?", "*")
        self._is_plain &= settings.keys() <= _KNOWN and settings.get("default") != "==SUPPRESS=="
        long = next((name for name in names if name.startswith("--")), names[0])
        dest = settings.get("dest") or long.lstrip("-").replace("-", "_")
        known = settings | {"dest": dest, "action": action}
        self._defaults[dest] = settings.get("default", False if action == "store_true" else None)
        if not names[0].startswith("-"):
            self._arguments.append(known)
            return
        self._options |= dict.fromkeys(names, known)
        if settings.get("required"):
            self._required.add(dest)

    def read(self, words: Sequence[str]) -> dict[str, Any] | None:
        """Return the value of each option and argument as argparse does, or None if that has to read it."""
        if not self._is_plain:
            return None
        values, given, loose = dict(self._defaults), set(), []
        rest = iter(words)
        try:
            for word in rest:
                if not word.startswith("-"):
                    loose.append(word)
                    continue
                option = self._options[word]
                given.add(option["dest"])
                values[option["dest"]] = self._value(option, rest, values[option["dest"]])
            values |= self._arranged(loose)
        except Exception:  # Whatever it is, argparse says it.
            return None
        return values if given >= self._required else None

    def _value(self, option: dict[str, Any], rest: Any, before: Any) -> Any:
        if option["action"] == "store_true":
            return True
        text = next(rest)
        if text.startswith("-"):
            raise ValueError
        value = _read(option, text)
        return [*before, value] if option["action"] == "append" else value

    def _arranged(self, words: list[str]) -> dict[str, Any]:
        """Return the arguments without dashes. Raises ValueError where one word could be another's."""
        kinds = [argument.get("nargs") for argument in self._arguments]
        if kinds == ["*"]:
            return {self._arguments[0]["dest"]: words}
        needed = kinds.count(None)
        if kinds != [None] * needed + ["?"] * (len(kinds) - needed) or not needed <= len(words) <= len(kinds):
            raise ValueError
        pairs = zip(self._arguments, words, strict=False)
        return {argument["dest"]: _read(argument, word) for argument, word in pairs}


def _read(declared: dict[str, Any], text: str) -> Any:
    parse: Callable[[str], Any] = declared.get("type") or str
    value = parse(text)
    if declared.get("choices") and value not in declared["choices"]:
        raise ValueError
    return value
