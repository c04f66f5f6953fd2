"""A store that others can write, without its key: what they lay there is never believed, and never fatal."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest

import deploy_runner
from tests.conftest import Project, clean_environment

RIGHT = b"HELLO!HELLO!"


def run(chain: Project) -> set[object]:
    """Run in this process; assert that what is then in the store is right, and return the states."""
    pipeline = deploy_runner.load(chain.folder / "pipeline.yaml", environ=clean_environment())
    record = deploy_runner.run(pipeline)
    assert record.exit_code == 0
    outputs = record.stages["b"]["outputs"]
    assert isinstance(outputs, dict)
    assert pipeline.store.object_path(str(outputs["text"])).read_bytes() == RIGHT
    return {stage["state"] for stage in record.stages.values()}


@pytest.fixture
def home(chain: Project) -> Path:
    """The store of a project that has run twice."""
    run(chain)
    run(chain)
    return chain.folder / ".deploy-runner"


@pytest.mark.parametrize("size", [8, 16])
def test_a_forged_row_of_the_memo_beside_an_altered_object_is_not_believed(
    chain: Project, home: Path, size: int
) -> None:
    altered = next(path for path in chain.objects() if path.read_bytes() == RIGHT)
    altered.chmod(0o644)
    altered.write_bytes(b"WRONG!WRONG!")
    s = altered.stat()
    state = (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)
    digest = "".join(altered.parts[-2:])
    check = blake2b(f"{altered}\0{state}\0{digest}".encode(), digest_size=size).hexdigest()
    with sqlite3.connect(home / "stat.sqlite") as memo:
        row = (str(altered), *state, digest, check)
        memo.execute("INSERT OR REPLACE INTO memo VALUES (?,?,?,?,?,?,?,?)", row)
    assert "healed" in run(chain)


def test_a_compiled_pipeline_under_anothers_name_is_not_run(chain: Project, home: Path) -> None:
    (compiled,) = (home / "compiled").iterdir()
    chain.write("two.yaml", (chain.folder / "pipeline.yaml").read_text().replace('"!"', '"?"'))
    chain.cli("run", "two.yaml")
    (other,) = set((home / "compiled").iterdir()) - {compiled}
    shutil.copy(other, compiled)
    chain.run()
    assert chain.output("b") == RIGHT


def test_an_old_run_record_under_a_new_name_is_not_shown(chain: Project, home: Path) -> None:
    first, last = sorted((home / "runs").iterdir())
    shutil.copytree(first, home / "runs" / f"9{last.name}")
    shutil.copy(first / "record.json", last / "record.json")
    assert chain.cli("show", "--runs").stdout.split()[0] == first.name
    assert len(chain.cli("show", "--runs").stdout.splitlines()) == 1


def kinds(chain: Project, home: Path) -> list[Path]:
    """Return one state file of each kind, and a second action record."""
    actions = sorted(p for p in (home / "actions").rglob("*.json"))
    newest = max((home / "runs").iterdir())
    return [
        *actions[:2], *(home / "compiled").iterdir(), *(home / "last").iterdir(), newest / "record.json",
        home / "counter",
        home / "counter.lock",
        home / "stat.sqlite", home / "gc.lock", *chain.objects()[:2],
    ]  # fmt: skip


def replace(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def relink(path: Path, target: str) -> None:
    path.unlink()
    os.symlink(target, path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "garbage": lambda path: path.write_bytes(b"\x00\xff garbage {}\n"),
    "json": lambda path: path.write_bytes(b"[1]"),
    "folder": replace,
    "link to nothing": lambda path: relink(path, "nothing/there"),
    "link elsewhere": lambda path: relink(path, "/etc/passwd"),
    "pipe": pipe,
}


def writable(paths: list[Path]) -> None:
    for path in paths:
        path.chmod(0o644)


@pytest.mark.parametrize("damage", DAMAGES)
def test_state_that_is_damaged_in_any_way_is_a_miss(chain: Project, home: Path, damage: str) -> None:
    found = kinds(chain, home)
    writable(found)
    for path in found:
        DAMAGES[damage](path)
    chain.cli("cache", "gc", "--dry-run")
    chain.cli("show", exits=None)
    run(chain)
    DAMAGES[damage](chain.objects()[0])
    assert chain.cli("cache", "verify", exits=1).stdout.count("object ") == 1
    DAMAGES[damage](home / "secret")
    run(chain)
    assert (home / "secret").stat().st_size == 32
    assert run(chain) == {"hit"}


@pytest.mark.parametrize("step", range(1, 11))
def test_state_of_one_kind_in_the_place_of_another_is_a_miss(chain: Project, home: Path, step: int) -> None:
    found = kinds(chain, home)
    writable(found)
    contents = [path.read_bytes() for path in found]
    for index, path in enumerate(found):
        path.write_bytes(contents[(index + step) % len(found)])
    run(chain)
    assert run(chain) == {"hit"}


def test_a_key_that_another_user_laid_there_is_not_taken(chain: Project, home: Path) -> None:
    if os.geteuid():
        pytest.skip("giving a file away needs root")
    os.chown(home / "secret", 65534, 65534)
    assert set(chain.states().values()) == {"ran"}
    assert (home / "secret").stat().st_uid == 0
