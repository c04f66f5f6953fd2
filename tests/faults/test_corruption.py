"""One wrong bit anywhere in the store: found before it is used, healed without help, same digests."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from deploy_runner.engine.runs import recorded_runs
from deploy_runner.store.cas import Store
from deploy_runner.store.verify import verify
from tests.conftest import Project
from tests.faults.runs import orphans, prepare

OTHERS = ("truncate", "empty", "longer", "delete")


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Damage a file and keep its mode and times."""
    state = path.stat()
    if how == "delete":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "flip" and data:
        bit = rng.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
    elif how == "truncate":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    elif how == "longer":
        data += b"x"
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def state_files(home: Path) -> list[Path]:
    """Return every file of the store but the lock files, which hold nothing."""
    return sorted(
        p for p in home.rglob("*") if p.is_file() and "locks" not in p.parts and p.suffix != ".lock"
    )


def corrupt(project: Project, count: int, damages: tuple[str, ...], seed: int) -> None:
    """Damage so many files of a store, each followed by a look at it and by a run."""
    expected, rng = prepare(project), random.Random(seed)
    home = project.folder / ".deploy-runner"
    project.run()
    kept = project.folder / "kept"
    shutil.copytree(home, kept, copy_function=shutil.copy2)
    for _ in range(count):
        file = rng.choice(state_files(home))
        how = rng.choice(damages)
        where = f"{how} of {file.relative_to(home)}"
        damage(file, how, rng)
        for record in recorded_runs(home):
            assert {k: v["outputs"] for k, v in record.stages.items()} == expected, where
        result = project.run()
        assert {k: v["outputs"] for k, v in result["stages"].items()} == expected, where
        report = verify(Store(home))
        assert report.ok, f"{where}: {report}"
        assert not orphans(home), where
        if rng.random() < 0.05:  # Old damage adds up in nothing: begin anew now and then.
            shutil.rmtree(home)
            shutil.copytree(kept, home, copy_function=shutil.copy2)


def test_damaged_files_are_found_and_healed(project: Project) -> None:
    corrupt(project, 40, ("flip", "flip", *OTHERS), seed=1)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [2, 3])
def test_a_thousand_flipped_bits_are_found_and_healed(project: Project, seed: int) -> None:
    corrupt(project, 500, ("flip",), seed=seed)


@pytest.mark.faults
def test_two_hundred_files_cut_emptied_lengthened_or_lost_are_found_and_healed(project: Project) -> None:
    corrupt(project, 200, OTHERS, seed=4)


def test_a_damaged_record_of_a_run_is_said_and_never_shown(chain: Project) -> None:
    chain.run()
    (record,) = (chain.folder / ".deploy-runner/runs").glob("*/record.json")
    data, rng = record.read_bytes(), random.Random(0)
    run_id = record.parent.name
    assert json.loads(data)["id"] == run_id
    for _ in range(100):
        bit = rng.randrange(len(data) * 8)
        record.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        assert not list(recorded_runs(chain.folder / ".deploy-runner"))
    assert "has no valid record" in chain.cli("show", "--run", run_id, exits=2).stderr
    chain.run()
    assert chain.cli("show", "--json").returncode == 0
