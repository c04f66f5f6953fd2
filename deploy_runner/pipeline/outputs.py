"""What a stage's outputs are: those of its type and those that the pipeline names, each in its own place."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from ..types import Kind, OutputSpec
from . import interface
from .drafts import Draft, Ground
from .inputs import leaves_project
from .misfits import find_mark

__all__ = ["find_outputs"]


def find_outputs(ground: Ground, draft: Draft) -> dict[str, OutputSpec]:
    """Return a stage's outputs by name, each path in its shortest spelling."""
    outputs = dict(interface.output_specs(draft.type.cls))
    for name, path in draft.spec.outputs.items():
        mark = find_mark(draft.node, ("outputs", name), key=True)
        if not interface.is_open(draft.type.cls.Outputs):
            ground.say(mark, f"the outputs of {draft.spec.uses} have fixed names",
                      f"the outputs are {', '.join(outputs)}")  # fmt: skip
        elif not name.isidentifier() or not _is_place(path):
            ground.say(mark, f"{name}: {path!r} is not a name and a path inside the outputs")
        else:
            kind: Kind = "folder" if path.endswith("/") else "file"
            outputs[name] = OutputSpec(os.path.normpath(path), kind)
    for name, message in _overlapping(outputs):
        place = ("outputs", name) if name in draft.spec.outputs else ("uses",)
        ground.say(find_mark(draft.node, place, key=True), message, "give each output a path of its own")
    return outputs


def _is_place(path: str) -> bool:
    return os.path.normpath(path) != "." and path.isprintable() and not leaves_project(path)


def _overlapping(outputs: Mapping[str, OutputSpec]) -> Iterator[tuple[str, str]]:
    """Yield the outputs that are where one before them is, inside or around it, and how.

    Paths that differ only in case are one path on the disks of macOS and Windows.
    """
    taken: dict[str, str] = {}
    around: dict[str, str] = {}
    for name, spec in outputs.items():
        place = unicodedata.normalize("NFC", spec.path).casefold()
        above = [str(parent) for parent in PurePosixPath(place).parents][:-1]
        inside = next((taken[parent] for parent in above if parent in taken), None)
        if other := taken.get(place):
            differs = "" if outputs[other].path == spec.path else ", but for its case"
            yield name, f"the output {name!r} has the path of the output {other!r}{differs}: {spec.path}"
        elif inside:
            yield name, f"the output {name!r} ({spec.path}) is inside the output {inside!r}"
        elif other := around.get(place):
            yield name, f"the output {other!r} ({outputs[other].path}) is inside the output {name!r}"
        taken.setdefault(place, name)
        for parent in above:
            around.setdefault(parent, name)
