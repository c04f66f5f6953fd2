"""YAML text → a tree of nodes that know their line and column.

What is read is the YAML 1.2 core schema: `no` and `1:30` are strings, `010` is an error, a key
given twice is an error. Depth, keys and what aliases expand to are limited, so that a bomb is refused
at once; what is written out may be large: 16 MiB, and half a million keys and values. The parser is
libyaml's, used event by event, which does not recurse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ..errors import Problem, SpecError, UsageError, closest_path
from ..types import Json, Mark

__all__ = ["Node", "load_yaml", "plain", "read_text"]

_MAX_BYTES = 16 << 20
_MAX_NODES = 500_000
_MAX_DEPTH = 64
_MAX_ALIASED = 100_000
_MAX_KEY = 1000
_MAX_INT_DIGITS = 18

_SHORTER = "write stages that differ in a few values once, with a `matrix:`"

_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_WORDS: dict[str, Json] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMERIC = frozenset("+-.0123456789")
"""What a number begins with."""
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_OCTAL_LOOKING = re.compile(r"[-+]?0[0-9]+\Z")
_BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
_BARE_REFERENCE = re.compile(r"(?<![${])[{\[](?!\{)[^\"'\n]*\$\{\{")
"""One between {} or [] that isn't in quotes."""
_TAGS = re.compile(r"^%TAG\b", re.MULTILINE)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


_NO_KEYS: Mapping[str, Mark] = MappingProxyType({})
"""One for all that are no mappings: of half a million values most are none."""


@dataclass(slots=True)
class Node:
    """A value of a YAML text with its place; `keys` are the places of a mapping's keys."""

    value: Any
    mark: Mark
    keys: Mapping[str, Mark] = field(default_factory=lambda: _NO_KEYS)
    weight: int = 1

    def child_marks(self, name: str) -> Mark:
        """Return the place of a mapping's key, or of the mapping where it has no such key."""
        return self.keys.get(name, self.mark)


def plain(node: Node) -> Json:
    """Return the node's value without marks."""
    if isinstance(node.value, dict):
        return {name: plain(child) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    value: Json = node.value
    return value


def read_text(path: Path, name: str, *, missing: str = "") -> str:
    """Return a file's text. Raises UsageError where there is none, SpecError if it isn't UTF-8.

    `missing` is what to do if there is no file, nor one with a similar name.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except IsADirectoryError:
        raise UsageError(f"{name} is a folder", fix="use the pipeline's YAML file") from None
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist", fix=closest_path(name) or missing) from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{name} can't be read: {said}") from None
    if len(data) > _MAX_BYTES:
        raise SpecError([Problem(f"the file is larger than {_MAX_BYTES >> 20} MiB", name, 1, 1, _SHORTER)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        raise _refusal(f"byte 0x{data[error.start]:02x} is not UTF-8", name, before) from None


def _refusal(message: str, file: str, before: str) -> SpecError:
    line = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1) + 1
    return SpecError([Problem(message, file, line, column)])


def load_yaml(text: str, file: str) -> Node:
    """Return the tree of one YAML document. Raises SpecError at the first thing it can't read."""
    if found := _UNPRINTABLE.search(text):
        sign = f"U+{ord(found.group()):04X}"
        raise _refusal(f"the character {sign} is not allowed", file, text[: found.start()])
    if found := _TAGS.search(text):
        raise _refusal("the directive %TAG is not allowed", file, text[: found.start()])
    try:
        return _Composer(file).compose(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        said = " ".join(part for part in (error.context, error.problem) if part)
        fix = _fix_of_yaml(said, text.split("\n")[max(0, line - 2) : line])
        raise SpecError([Problem(f"not valid YAML: {said}", file, line, column, fix)]) from None
    except yaml.YAMLError as error:
        raise SpecError([Problem(f"not valid YAML: {error}", file, 1, 1)]) from None


def _fix_of_yaml(said: str, lines: list[str]) -> str:
    """Return what to do about what libyaml says of the last of two lines."""
    if any(_BARE_REFERENCE.search(line) for line in lines):
        return "put a `${{ … }}` between {} or [] in quotes"
    if any(line[: len(line) - len(line.lstrip())].count("\t") for line in lines[-1:]):
        return "indent with spaces: YAML allows no tabs there"
    if "did not find expected key" in said or "did not find expected '-'" in said:
        return "indent the line exactly like the others of its block"
    if "mapping values are not allowed" in said:
        return "indent the line exactly like the others of its block, or quote a value that contains `: `"
    return ""


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet."""

    node: Node
    anchor: str | None
    keys: dict[str, Mark]
    key: Node | None = None
    merges: list[Node] = field(default_factory=list)


class _Composer:
    """Events → nodes, with a stack of its own instead of recursion."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._nodes = 0
        self._aliased = 0
        self._root: Node | None = None

    def compose(self, events: Iterator[yaml.Event]) -> Node:
        documents = 0
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self._add(event, Node(self._scalar(event), self._mark(event)), event.anchor)
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "a second document starts here", "keep one")
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                self._begin(event)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                self._end(event)
        if self._root is None:
            fix = "`deploy-runner init CHECKPOINT` writes a pipeline"
            raise SpecError([Problem("the file is empty", self._file, 1, 1, fix)])
        return self._root

    def _mark(self, event: yaml.Event) -> Mark:
        start = event.start_mark
        assert start is not None
        return Mark(self._file, start.line + 1, start.column + 1)

    def _error(self, event: yaml.Event, message: str, fix: str = "") -> SpecError:
        mark = self._mark(event)
        return SpecError([Problem(message, mark.file, mark.line, mark.column, fix)])

    def _begin(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", f"{_TAG}{'map' if mapping else 'seq'}"):
            raise self._error(event, f"the tag {event.tag} is not allowed", "remove it")
        if len(self._open) >= _MAX_DEPTH:
            raise self._error(event, f"nested deeper than {_MAX_DEPTH} levels")
        keys: dict[str, Mark] = {}
        node = Node({} if mapping else [], self._mark(event), keys)
        self._open.append(_Open(node, event.anchor, keys))

    def _end(self, event: yaml.Event) -> None:
        done = self._open.pop()
        for merge in done.merges:
            self._merge(event, done, merge)
        self._add(event, done.node, done.anchor)

    def _alias(self, event: yaml.AliasEvent) -> None:
        if any(level.anchor == event.anchor for level in self._open):
            raise self._error(event, f"the alias *{event.anchor} contains itself")
        if event.anchor not in self._anchors:
            raise self._error(event, f"there is no anchor &{event.anchor} before this alias")
        node = self._anchors[event.anchor]
        self._count(event, node.weight, "aliases")
        self._add(event, Node(node.value, node.mark, node.keys, node.weight), None)

    def _count(self, event: yaml.Event, values: int, what: str) -> None:
        """Count what is not written out, but brought by an alias or a merge."""
        self._aliased += values
        if self._aliased > _MAX_ALIASED:
            raise self._error(event, f"the {what} expand to more than {_MAX_ALIASED} values")

    def _add(self, event: yaml.Event, node: Node, anchor: str | None) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise self._error(event, f"the file contains more than {_MAX_NODES} keys and values", _SHORTER)
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        parent.node.weight += node.weight
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
        elif parent.key is None:
            self._key(event, parent, node)
        else:
            self._entry(parent, parent.key, node)

    def _key(self, event: yaml.Event, parent: _Open, node: Node) -> None:
        if isinstance(node.value, int) and not isinstance(node.value, bool):
            node = Node(str(node.value), node.mark)  # `{0: batch}`; a key is always text.
        if not isinstance(node.value, str):
            said = "a collection" if isinstance(node.value, (list, dict)) else repr(node.value)
            raise self._error(event, f"a key must be a string, not {said}", "put it in quotes")
        if len(node.value) > _MAX_KEY:
            raise self._error(event, f"a key is longer than {_MAX_KEY} characters")
        if node.value in parent.node.value:
            first = parent.keys[node.value]
            place = f"line {first.line}, column {first.column}"
            raise self._error(event, f"the key {node.value!r} is already defined at {place}")
        parent.key = node

    @staticmethod
    def _entry(parent: _Open, key: Node, node: Node) -> None:
        parent.key = None
        if key.value == "<<":
            parent.merges.append(node)
            return
        parent.node.value[key.value] = node
        parent.keys[key.value] = key.mark

    def _merge(self, event: yaml.Event, into: _Open, merge: Node) -> None:
        sources = merge.value if isinstance(merge.value, list) else [merge]
        for source in sources:
            if not isinstance(source.value, dict):
                mark = source.mark
                message = "'<<' merges a mapping, or a list of mappings"
                raise SpecError([Problem(message, mark.file, mark.line, mark.column)])
            self._count(event, len(source.value), "merges")
            for name, child in source.value.items():
                if name not in into.node.value:
                    into.node.value[name] = child
                    into.keys[name] = source.keys[name]

    def _scalar(self, event: yaml.ScalarEvent) -> Json:
        text: str = event.value
        if event.tag is None:
            return self._core(event, text) if event.implicit[0] else text
        if event.tag in ("!", f"{_TAG}str"):
            return text
        if event.tag not in _KNOWN_TAGS:
            raise self._error(event, f"the tag {event.tag} is not allowed", "remove it")
        value = self._core(event, text)
        wanted = event.tag.removeprefix(_TAG)
        if wanted != _type_name(value):
            raise self._error(event, f"{text!r} is not a valid !!{wanted}")
        return value

    def _core(self, event: yaml.ScalarEvent, text: str) -> Json:
        if text in _WORDS:
            return _WORDS[text]
        if text[0] not in _NUMERIC:
            return text
        if _INT.match(text) or _BASED.match(text):
            if len(text) > _MAX_INT_DIGITS:
                raise self._error(event, f"{text[:24]}… is a number that is too large", "quote it")
            return int(text, 0)
        if _OCTAL_LOOKING.match(text):
            decimal = text.lstrip("+-0") or "0"
            fix = f"write {decimal}, or 0o{decimal} for octal, or quote it"
            raise self._error(event, f"{text} could be octal or decimal", fix)
        if _FLOAT.match(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise self._error(event, f"{text[:24]} is a number that is too large", "quote it")
            return number
        if _NOT_FINITE.match(text):
            raise self._error(event, f"{text} is not a finite number", "quote it")
        return text


def _type_name(value: Json) -> str:
    names = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
    return names[type(value)]
