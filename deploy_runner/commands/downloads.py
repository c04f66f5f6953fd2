"""Bring what a command is about to read from the shared cache, and show how far that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import StoreError
from ..types import Artifact

if TYPE_CHECKING:
    from ..store.cas import Store

__all__ = ["Needed", "bring"]


class Needed(NamedTuple):
    """An artifact that a command reads: what it is called, its action's key, the command that rebuilds it."""

    artifact: Artifact
    name: str
    key: str
    rebuild: str


def bring(store: Store, needed: Sequence[Needed], *, quiet: bool = False) -> None:
    """Have artifacts here. Raises StoreError for one that isn't available; the next run rebuilds it."""
    from ..report.transfers import Transfer

    away = [one for one in needed if store.state(one.artifact) != "present"]
    if not away:
        return
    total = sum(one.artifact.size for one in away)
    with Transfer(f"downloading {', '.join(one.name for one in away)}", total, quiet=quiet) as report:
        for one in away:
            if not store.fetch(one.artifact, report):
                store.give_up(one.key)
                raise _lost(store, one)


def _lost(store: Store, one: Needed) -> StoreError:
    state = store.state(one.artifact)
    if not store.shares:
        return StoreError(f"{one.name} is {state} in the store", fix=f"run `{one.rebuild}` to rebuild it")
    if store.reaches_all:
        message = f"{one.name} is {state} in the store, and the shared cache does not have it any more"
        return StoreError(message, fix=f"run `{one.rebuild}` to rebuild it")
    message = f"{one.name} is {state} in the store, and the shared cache can't be read"
    return StoreError(message, fix=f"try again later, or run `{one.rebuild} --force` to rebuild it")
