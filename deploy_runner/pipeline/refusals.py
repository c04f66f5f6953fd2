"""What a pipeline may not contain or read: credentials in plain text, and the store's own files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import Problem
from ..store.namespace import store_homes, stores_own
from ..types import Mark
from .credentials import Credentials, is_credential
from .loader import Node
from .references import BadReference, Reference, pieces

__all__ = ["credentials_in_the_open", "stores_file"]


def credentials_in_the_open(root: Node, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for each credential that isn't taken by `${{ secrets.NAME }}`.

    Looked at are the names and values of `env:`, and every text of the merged pipeline: an overlay or
    `--set "vars.token=$TOKEN"` brings a value as well as the file itself.
    """
    texts = list(_texts(root, ""))
    known = Credentials(environ, {name for _, node in texts for name in _secrets_in(node.value)})
    env = root.value.get("env")
    declared = env.value if env is not None and isinstance(env.value, dict) else {}
    for name, node in declared.items():
        mark = root.value["env"].child_marks(name)
        if is_credential(name):
            yield _problem(
                mark, f"{name} is a credential, which `env:` would store in keys and records", name
            )
        elif what := known.held_in(environ.get(name, "")):
            yield _problem(
                mark,
                f"the variable {name} contains {what}, which `env:` would store in keys and records",
                name,
            )
        elif isinstance(node.value, str) and (what := known.held_in(node.value)):
            yield _problem(node.mark, f"the default of {name} is {what} in plain text", name)
    for path, node in texts:
        if not path.startswith("env.") and (what := known.held_in(node.value)):
            yield _problem(node.mark, f"{path} contains {what} in plain text", "NAME")


def _secrets_in(text: str) -> Iterator[str]:
    if "${{" in text:
        with suppress(BadReference):  # It is said when the text is resolved.
            names = [part.expression for part in pieces(text) if isinstance(part, Reference)]
            yield from (name.removeprefix("secrets.") for name in names if name.startswith("secrets."))


def _problem(mark: Mark, message: str, name: str) -> Problem:
    fix = f"remove it, and write ${{{{ secrets.{name} }}}} as a parameter's whole value under `with:`"
    file = mark.file.partition("=")[0] if mark.file.startswith("--set ") else mark.file
    return Problem(message, file, mark.line, mark.column, fix)


def _texts(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    if isinstance(node.value, str):
        yield path, node
    elif isinstance(node.value, dict):
        for name, child in node.value.items():
            yield from _texts(child, f"{path}.{name}" if path else name)
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _texts(child, f"{path}.{index}")


def stores_file(path: Path, folder: Path, environ: Mapping[str, str]) -> str:
    """Say how a path of the project is the store's own, through links too; nothing where it isn't."""
    for home in store_homes(folder, environ):
        if how := stores_own(os.fspath(path), os.fspath(home), os.fspath(folder)):
            return how
    return ""
