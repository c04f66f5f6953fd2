"""After a worker: take its outputs, its result and its evidence, trusting nothing that it left.

All of its processes have ended. What they left may be links, devices, pipes, another folder in place
of their own: everything is walked by descriptors, and no link is followed.
"""

from __future__ import annotations

import json
import os
import stat as stat_module
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import StageError, StoreError
from ...store.cas import Store
from ...store.handles import Entry, entry_of, open_file, opened, walk_at
from ...types import Artifact, OutputSpec
from .redact import Redactor

__all__ = ["collect", "keep_evidence", "read_result"]

_EVIDENCE_BYTES = 64 << 20
_RESULT_BYTES = 64 << 20
_RESULT_DEPTH = 50
_RESULT = {"ok": bool, "converged": bool, "figures": dict, "error": dict, "undeclared": list}


def collect(
    folder: Path, outputs: Mapping[str, OutputSpec], store: Store, redactor: Redactor
) -> dict[str, Artifact]:
    """Take the declared outputs of an action's folder into the store, and refuse what was not declared.

    Raises StageError for what isn't as declared, StoreError for what the store can't keep.
    """
    with opened(str(folder)) as here:
        with opened("work", here) as work:
            os.rename("outputs", "made", src_dir_fd=work, dst_dir_fd=here)
        try:
            with opened("made", here) as made:
                _refuse_undeclared(outputs, made)
                taken = {name: _take(name, spec, made, store, redactor) for name, spec in outputs.items()}
        except FileNotFoundError as error:
            raise StageError(f"it removed {error.filename}") from error
    return {name: artifact for name, artifact in taken.items() if artifact is not None}


def _take(name: str, spec: OutputSpec, made: int, store: Store, redactor: Redactor) -> Artifact | None:
    parent, _, last = spec.path.rpartition("/")
    try:
        with opened(parent, made) as folder:
            entry = entry_of(folder, last)
            kind = _kind(entry)
            if kind != spec.kind:
                raise StageError(f"its output `{name}` ({spec.path}) is a {kind}, not a {spec.kind}")
            _refuse_secrets(redactor, name, entry)
            return store.ingest_at(folder, last)
    except FileNotFoundError:
        if spec.optional:
            return None
        fix = "write that path below the folder of the outputs, or correct it in the pipeline"
        raise StageError(f"it did not write its output `{name}` ({spec.path})", fix=fix) from None
    except StoreError as error:
        raise StageError(f"its output `{name}` ({spec.path}): {error.message}", fix=error.fix) from error


def _kind(entry: Entry) -> str:
    kinds = {stat_module.S_IFREG: "file", stat_module.S_IFDIR: "folder", stat_module.S_IFLNK: "symbolic link"}
    return kinds.get(stat_module.S_IFMT(entry.stat.st_mode), "device or pipe")


def _refuse_undeclared(outputs: Mapping[str, OutputSpec], made: int) -> None:
    declared = tuple(spec.path for spec in outputs.values())
    for entry in walk_at(made, skip=declared):
        if entry.path in declared or _kind(entry) == "folder":
            continue
        fix = "declare it under `outputs:`, or write it to the scratch folder"
        raise StageError(f"it wrote {entry.shown}, which is not a declared output", fix=fix)


def _refuse_secrets(redactor: Redactor, output: str, entry: Entry) -> None:
    """Look for secrets in an output's files, by descriptors of theirs, and in its names."""
    if not redactor:
        return
    if _kind(entry) == "folder":
        with opened(entry.name, entry.folder) as folder:
            for below in walk_at(folder, f"{entry.name}/"):
                if below.is_file:
                    _refuse_secrets(redactor, output, below)
        return
    fd = open_file(entry)
    try:
        if name := redactor.found_in(Path(f"/proc/self/fd/{fd}"), entry.path):
            raise StageError(f"its output `{output}` contains the secret {name}")
    finally:
        os.close(fd)


def keep_evidence(folder: Path) -> str:
    """Return the folder with what a gate wrote before it refused: the report, the worst sample.

    No large file, link or device is kept. Not for a stage with secrets: its outputs have not been searched.
    """
    with suppress(OSError, StoreError), opened(str(folder)) as here:
        with opened("work", here) as work:
            os.rename("outputs", "made", src_dir_fd=work, dst_dir_fd=here)
        with opened("made", here) as made:
            _drop_unfit(made)
            if os.listdir(made):
                return str(folder / "made")
    return ""


def _drop_unfit(folder: int) -> None:
    for name in os.listdir(folder):
        entry = entry_of(folder, name)
        if _kind(entry) == "folder":
            with opened(name, folder) as below:
                _drop_unfit(below)
            with suppress(OSError):  # It is not empty.
                os.rmdir(name, dir_fd=folder)
        elif not entry.is_file or entry.stat.st_nlink > 1 or entry.stat.st_size > _EVIDENCE_BYTES:
            os.unlink(name, dir_fd=folder)


def read_result(folder: Path) -> dict[str, Any]:
    """Return what a worker wrote last, or nothing where that is not a result as a worker writes it."""
    try:
        with opened(str(folder)) as here:
            entry = entry_of(here, "result.json")
            if entry.stat.st_size > _RESULT_BYTES or entry.stat.st_nlink > 1:
                return {}
            with open(open_file(entry), "rb") as file:
                data = file.read()
            value = json.loads(data)
            if b"\\u" in data:  # Halves of characters, of a name that is no UTF-8, can't be written.
                value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (OSError, ValueError, StoreError, RecursionError):
        return {}
    return value if _is_result(value) else {}


def _is_result(value: Any) -> bool:
    if not isinstance(value, dict) or _is_deep(value):
        return False
    error = value.get("error", {"class": "", "message": "", "fix": ""})
    return (
        all(isinstance(value[name], kind) for name, kind in _RESULT.items() if name in value)
        and isinstance(error, dict)
        and all(isinstance(error.get(name), str) for name in ("class", "message", "fix"))
        and all(map(_is_lookup, value.get("undeclared", ())))
    )


def _is_lookup(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row)


def _is_deep(value: Any, depth: int = 0) -> bool:
    if depth > _RESULT_DEPTH:
        return True
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_deep(child, depth + 1) for child in children)
