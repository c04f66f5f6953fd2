"""What the page of a run shows beside its record: pictures, the ends of logs, and the run before it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..engine.runs import RunRecord, run_before
from ..store.cas import Store
from ..store.files import open_regular
from ..types import Graph
from .html import MOST_LOG_BYTES, Material, is_picture

__all__ = ["material_of"]

_PICTURE_BYTES = _ALL_PICTURE_BYTES = 900 * 1024
"""In the page, where they are Base64, these are 1.2 MB."""
_ALL_LOG_BYTES = 400_000


def material_of(record: RunRecord, graph: Graph, store: Store) -> Material:
    """Read what the page shows, so much of it that the page stays small."""
    return Material(_fitting(_pictures(record, graph, store)), _logs(record), run_before(record))


def _fitting(found: Iterator[tuple[tuple[str, str], Path]]) -> dict[tuple[str, str], bytes]:
    """Read the first pictures that fit in the page together."""
    left = _ALL_PICTURE_BYTES
    pictures = {}
    for key, path in found:
        content = _read(path, min(left, _PICTURE_BYTES))
        if content:
            pictures[key] = content
            left -= len(content)
    return pictures


def _read(path: Path, most: int) -> bytes:
    """Return a file's content; nothing of a link, of what can't be read, or of more than `most` bytes."""
    try:
        descriptor = open_regular(os.fspath(path), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        return file.read(most) if os.fstat(descriptor).st_size <= most else b""


def _pictures(record: RunRecord, graph: Graph, store: Store) -> Iterator[tuple[tuple[str, str], Path]]:
    """Yield the pictures among what failed gates left for inspection, then those among the outputs."""
    for id_, entry in record.stages.items():
        folder = Path(str(entry.get("evidence") or os.devnull))
        if folder.is_dir():
            for name, output in graph.stages[id_].outputs.items():
                if is_picture(output):
                    yield (id_, name), folder / output.path
    for id_ in record.stages:
        for name, artifact in record.artifacts(id_).items():
            fits = is_picture(graph.stages[id_].outputs[name]) and artifact.size <= _PICTURE_BYTES
            if fits and store.fetch(artifact):
                yield (id_, name), store.object_path(artifact.digest)


def _logs(record: RunRecord) -> Mapping[str, str]:
    """Return the ends of the logs, those of failed stages first."""
    logs = {}
    left = _ALL_LOG_BYTES
    for id_, entry in sorted(record.stages.items(), key=lambda item: item[1]["state"] != "failed"):
        if entry["state"] != "hit" and left > 0 and (end := _end(record.folder / "logs" / f"{id_}.log")):
            logs[id_] = end
            left -= len(end)
    return logs


def _end(log: Path) -> str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST_LOG_BYTES))
            text = file.read(MOST_LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""
    if size <= MOST_LOG_BYTES:
        return text
    return f"(the last {MOST_LOG_BYTES:,} of {size:,} bytes)\n{text.partition(chr(10))[2] or text}"
