"""A process that can't open files any more takes nothing of the store for absent: it stops, and loses nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project

# Leaves no descriptor free, does the thing, and says how it ended.
EXHAUSTED = """
import os, resource, sys
from pathlib import Path
from deploy_runner.errors import StoreError
from deploy_runner.engine.runs import kept_runs
from deploy_runner.store.cas import Store
from deploy_runner.store.gc import collect
from deploy_runner.store.seal import Seal
home = Path(sys.argv[1])
store = Store(home)
things = {
    "secret": lambda: Seal(home).secret(),
    "runs": lambda: kept_runs(home, 1),
    "record": lambda: store.records.get(next(store.records.keys())),
    "keys": lambda: list(store.records.keys()),
    "objects": lambda: list(store.objects()),
    "put": lambda: Seal(home).sealed(b"x", "action", "k"),
}
key = next(store.records.keys())
things["record"] = lambda: store.records.get(key)
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
try:
    print("went on:", things[sys.argv[2]]())
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("thing", ["secret", "runs", "record", "keys", "objects", "put"])
def test_nothing_is_taken_for_absent_and_nothing_is_replaced(chain: Project, thing: str) -> None:
    chain.run()
    home = chain.folder / ".deploy-runner"
    secret = (home / "secret").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, str(home), thing], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith(": Too many open files (raise the limit of open files (ulimit -n))\n"), (
        done.stdout
    )
    assert (home / "secret").read_bytes() == secret
    assert set(chain.states().values()) == {"hit"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_secret_that_cannot_be_read_is_not_replaced(chain: Project, tmp_path: Path) -> None:
    """As on a broken disk: the call fails, the file is there."""
    chain.run()
    home = chain.folder / ".deploy-runner"
    code = "import sys; from pathlib import Path; from deploy_runner.store.seal import Seal; Seal(Path(sys.argv[1])).secret()"
    trace = [
        "strace",
        "-qq",
        "-o",
        str(tmp_path / "log"),
        "-P",
        str(home / "secret"),
        "-e",
        "inject=openat:error=EIO",
    ]
    secret = (home / "secret").read_bytes()
    done = subprocess.run(
        [*trace, sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=False
    )
    assert "secret: Input/output error" in done.stderr
    assert (home / "secret").read_bytes() == secret
