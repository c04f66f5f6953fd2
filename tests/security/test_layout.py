"""A store in which somebody put links, files and pipes in the places of folders, as a restored cache may be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Project

RUN = "000007-20261128T221711-fc44"
OUTSIDE = (
    "a",
    "k.json",
    "sha256/aa/" + "b" * 62,
    "sub/" + "c" * 62,
    "sub/k.json",
    f"{RUN}/record.json",
    "x.lock",
)
KINDS: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda place, outside: place.symlink_to(outside),
    "dangling link": lambda place, outside: place.symlink_to(outside / "nothing"),
    "file": lambda place, _: place.write_text("x"),
    "pipe": lambda place, _: os.mkfifo(place),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's, with names such as a store's files have."""
    folder = tmp_path / "outside"
    for name in OUTSIDE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1, 1))
    return folder


def inner(home: Path) -> list[str]:
    """Return folders below those, some that are there and some that are not."""
    shards = [f"{top}/{shard.name}" for top in ("actions", "cas/sha256") for shard in (home / top).iterdir()]
    return [
        *shards,
        "actions/zz",
        "cas/sha256/zz",
        f"runs/{RUN}",
        "tmp/left",
        "tmp/left.new",
        "pull-requests/3",
    ]


def top(_: Path) -> list[str]:
    """Return the folders that every store has."""
    return ["actions", "cas", "compiled", "last", "locks", "pull-requests", "runs", "tmp"]


def objects(_: Path) -> list[str]:
    """Return the folder of all objects."""
    return ["cas/sha256"]


@pytest.mark.parametrize(
    ("places", "kind"),
    [*((top, kind) for kind in KINDS), (objects, "link"), (inner, "link"), (inner, "file")],
)
def test_what_is_no_folder_of_the_store_is_a_miss_and_nothing_outside_is_touched(
    chain: Project, outside: Path, places: Callable[[Path], list[str]], kind: str
) -> None:
    chain.run()
    home = chain.folder / ".deploy-runner"
    before = sorted((str(p), p.stat().st_mtime_ns) for p in outside.rglob("*"))
    for place in map(home.joinpath, places(home)):
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(exist_ok=True)
        KINDS[kind](place, outside)
    chain.cli("cache", "gc", "--keep-runs", "1")
    chain.cli("cache", "verify", exits=None)
    assert set(chain.states().values()) <= {"hit", "ran", "healed"}
    assert chain.output("b") == b"HELLO!HELLO!"
    assert set(chain.states().values()) == {"hit"}
    assert sorted((str(p), p.stat().st_mtime_ns) for p in outside.rglob("*")) == before
