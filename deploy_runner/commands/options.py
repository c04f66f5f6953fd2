"""A verb is a NamedTuple whose fields are its options: the parser, the help and docs/cli.md come from them.

A field says its type, its default and, by `Annotated`, an Option; one without a default is required. A
bool is a switch, a tuple an option that may be repeated, a Literal gives the choices. A field whose type
is a Group stands for several options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeGuard,
    cast,
    get_args,
    get_origin,
)

if TYPE_CHECKING:
    import argparse

    from ..api import Pipeline

__all__ = [
    "DEFAULT_PIPELINE",
    "Argument",
    "Group",
    "JsonResult",
    "JsonSwitch",
    "LogSwitch",
    "Option",
    "QuietSwitch",
    "Selection",
    "Verb",
    "fill",
    "given",
    "mapping",
    "positive",
    "size",
    "to_stderr",
    "whole_numbers",
]

DEFAULT_PIPELINE = "pipeline.yaml"


class Verb(Protocol):
    """A verb with the values of its options; calling it does the work and returns the exit code."""

    def __call__(self) -> int: ...  # noqa: D102


class Option(NamedTuple):
    """What an option is for, what its value is called in the help, and what reads it from text."""

    help: str
    metavar: str = ""
    parse: Callable[[str], object] = str
    short: str = ""


class Argument(NamedTuple):
    """A positional argument."""

    help: str = ""
    metavar: str = ""


class Group(Protocol):
    """Several options that belong together, as one field of a verb; `help` is what the field says."""

    @classmethod
    def declare(cls, parser: argparse.ArgumentParser, help: str) -> None: ...  # noqa: A002, D102

    @classmethod
    def take(cls, values: Mapping[str, Any]) -> Self: ...  # noqa: D102


class Selection(NamedTuple):
    """The pipeline, stages of it, and what is laid over it."""

    words: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The pipeline's file."""
        return self.words[0] if self._has_path else DEFAULT_PIPELINE

    @property
    def names(self) -> tuple[str, ...]:
        """The stages that are named."""
        return self.words[1:] if self._has_path else self.words

    @property
    def _has_path(self) -> bool:
        first = next(iter(self.words), "")
        return first.endswith((".yaml", ".yml")) or "/" in first or os.path.isfile(first)

    def load(self, on_compile: Callable[[], None] | None = None) -> Pipeline:
        """Load the pipeline; `on_compile` is called first where it was not compiled before."""
        from ..api import load

        return load(self.path, config=self.config, sets=self.sets, on_compile=on_compile, note=to_stderr)

    @classmethod
    def declare(cls, parser: argparse.ArgumentParser, help: str) -> None:  # noqa: A002
        """Add the pipeline and, where `help` says what they are for, stages; then what is laid over."""
        if help:
            said = f"the pipeline (default: {DEFAULT_PIPELINE}), then {help}"
            parser.add_argument("words", nargs="*", default=[], metavar="PIPELINE STAGE", help=said)
        else:
            parser.add_argument("words", nargs="?", metavar="PIPELINE", help=f"default: {DEFAULT_PIPELINE}")
        parser.add_argument(
            "--config",
            action="append",
            default=[],
            metavar="FILE",
            help="an overlay merged over the pipeline; may be repeated "
            "(default: configs/dry-run.yaml, if there is one)",
        )
        parser.add_argument(
            "--set",
            action="append",
            default=[],
            dest="sets",
            metavar="PATH=VALUE",
            help="set one value after all overlays, e.g. vars.opset=20; may be repeated",
        )

    @classmethod
    def take(cls, values: Mapping[str, Any]) -> Self:
        """Return the group of these values."""
        words = values["words"] or ()
        words = (words,) if isinstance(words, str) else tuple(words)
        return cls(words, tuple(values["config"]), tuple(values["sets"]))


JsonSwitch = Annotated[bool, Option("print JSON")]
JsonResult = Annotated[
    bool, Option("print one JSON object at the end of standard output, progress on stderr")
]
LogSwitch = Annotated[bool, Option("show the stages' log lines")]
QuietSwitch = Annotated[bool, Option("print errors only", short="-q")]


class _Field(NamedTuple):
    name: str
    type: Any
    about: Any
    required: bool
    default: Any


def fill(parser: argparse.ArgumentParser, verb: type[Verb]) -> None:
    """Add a verb's options to its parser."""
    for field in _fields(verb):
        if _is_group(field.type):
            field.type.declare(parser, field.about or "")
        elif isinstance(field.about, Argument):
            _add_argument(parser, field, field.about)
        else:
            _add_option(parser, field, field.about)


def given(verb: type[Verb], values: Mapping[str, Any]) -> Verb:
    """Return the verb with the values that its parser has read."""
    taken = {field.name: _taken(field, values) for field in _fields(verb)}
    return cast(Callable[..., Verb], verb)(**taken)


def _taken(field: _Field, values: Mapping[str, Any]) -> object:
    if _is_group(field.type):
        return field.type.take(values)
    value = values[field.name]
    return tuple(value) if _is_repeated(field.type) else value


@cache
def _fields(verb: type[Verb]) -> list[_Field]:
    from typing import get_type_hints

    defaults = cast(Any, verb)._field_defaults
    found = []
    for name, hint in get_type_hints(verb, include_extras=True).items():
        about = get_args(hint)[1] if get_origin(hint) is Annotated else None
        kind = get_args(hint)[0] if about is not None else hint
        found.append(_Field(name, kind, about, name not in defaults, defaults.get(name)))
    return found


def _is_group(kind: Any) -> TypeGuard[type[Group]]:
    return hasattr(kind, "declare")


def _is_repeated(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _add_argument(parser: argparse.ArgumentParser, field: _Field, about: Argument) -> None:
    parser.add_argument(
        field.name, nargs=None if field.required else "?", default=field.default, help=about.help or None,
        metavar=about.metavar or None, choices=_choices(field.type),
    )  # fmt: skip


def _add_option(parser: argparse.ArgumentParser, field: _Field, about: Option) -> None:
    names = ([about.short] if about.short else []) + ["--" + field.name.replace("_", "-")]
    if field.type is bool:
        parser.add_argument(*names, action="store_true", help=about.help)
        return
    repeated = _is_repeated(field.type)
    parser.add_argument(
        *names, required=field.required, help=about.help, type=about.parse, metavar=about.metavar or None,
        choices=_choices(field.type), action="append" if repeated else "store",
        default=list(field.default) if repeated else field.default,
    )  # fmt: skip


def _choices(kind: Any) -> Sequence[str] | None:
    members = (kind, *get_args(kind))  # Those of a union: `Literal[…] | None`.
    return next((get_args(one) for one in members if get_origin(one) is Literal), None)


def to_stderr(line: str) -> None:
    """Print a line for the user beside what a command prints for others."""
    print(line, file=sys.stderr)


def _unreadable(message: str) -> Exception:
    """Return what argparse shows of an option's value."""
    from argparse import ArgumentTypeError

    return ArgumentTypeError(message)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise _unreadable(f"{text!r} is not a whole number above 0")
    return int(text)


def size(text: str) -> int:
    """Read a size such as 8GiB, as bytes."""
    from ..pipeline.spec import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise _unreadable(str(error)) from None


def mapping(text: str) -> dict[str, object]:
    """Read `name: value, …` as YAML has it between braces."""
    import yaml

    try:
        found = yaml.safe_load(text if text.lstrip().startswith("{") else f"{{{text}}}")
    except yaml.YAMLError:
        found = None
    if ":" not in text or not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise _unreadable(f"{text!r} is not of the form 'num_classes: 10, depth: 2'")
    return found


def whole_numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them, as a shape is written."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        said = f"{text!r} is not a list of whole numbers such as 1,3,32,32"
        raise _unreadable(said) from None
