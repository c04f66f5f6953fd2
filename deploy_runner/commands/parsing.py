"""argparse whose errors are ours: one sentence, with the nearest name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from ..errors import UsageError, closest

__all__ = ["Parser"]

_CHOICE = re.compile(
    r"argument (?P<of>.+): invalid choice: '?(?P<value>.*?)'? \(choose from (?P<known>.*)\)", re.DOTALL
)


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError, where argparse prints how the verb is used and ends the process."""

    def error(self, message: str) -> NoReturn:
        """Say what argparse found."""
        fix = f"`{self.prog} --help` lists the options"
        if found := _CHOICE.fullmatch(message):
            known = [name.strip(" '") for name in found["known"].split(",")]
            message = f"argument {found['of']}: {found['value']!r} is none of {', '.join(known)}"
            fix = closest(found["value"], known)
        missing = message.removeprefix("the following arguments are required: ").split(", ")
        for action in self._actions:
            if missing == [action.dest] and action.choices:
                message, fix = f"{self.prog} needs one of {', '.join(action.choices)}", ""
        raise UsageError(message, fix=fix)

    def read(self, words: Sequence[str]) -> dict[str, object]:
        """Return the values by name, of options that may stand anywhere. Raises UsageError."""
        values, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            name = unknown[0].partition("=")[0]
            is_option = name.startswith("-")
            options = [text for action in self._actions for text in action.option_strings if text[:2] == "--"]
            fix = closest(name.lstrip("-"), [text[2:] for text in options]) if is_option else ""
            fix = fix.replace("'", "'--", 1)
            what = f"option {name}" if is_option else f"place for {name!r}"
            raise UsageError(
                f"{self.prog} has no {what}", fix=fix or f"`{self.prog} --help` lists the options"
            )
        return vars(values)
