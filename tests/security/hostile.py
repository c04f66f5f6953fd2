"""Run a project's hostile stages as root or as an ordinary user, on kernels that allow more or less."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deploy_runner.engine.execute.supervisor import probe
from tests.conftest import ROOT as ROOT_FOLDER
from tests.conftest import TEXT_STAGES, Project

USER = 23456
needs_mounts = pytest.mark.skipif(
    "a root folder of its own" not in str(probe()), reason="this machine allows no namespace of mounts"
)

# Becomes the runner, with less than this machine has: `given` says which system calls answer with what error,
# whether /proc can't be written to (as where AppArmor refuses user namespaces), which user it is, and which
# folders that user needs: where root keeps them to itself, they are shown at their places in folders that are open.
_LAUNCH = """
import ctypes, json, os, struct, sys
from pathlib import Path
given = json.loads(sys.argv.pop(1))
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags):
    assert libc.mount(source.encode(), str(target).encode(), kind, flags, None) == 0, os.strerror(ctypes.get_errno())
def show(needed):
    kept = {path: os.open(path, os.O_PATH) for path in needed}
    for path, fd in kept.items():
        for folder in reversed(Path(path).parents):
            if folder.exists() and not folder.stat().st_mode & 1:
                mount("tmpfs", folder, b"tmpfs", 0)
                folder.chmod(0o755)
        if not os.path.exists(path):
            os.makedirs(path)
            mount(f"/proc/self/fd/{fd}", path, None, 0x1000)
assert libc.unshare(0x20000) == 0
mount("none", "/", None, 0x4000 | 0x40000)
if given["user"]:
    show(given["needed"])
if given["read_only_proc"]:
    mount("/proc", "/proc", None, 0x1000)
    mount("none", "/proc", None, 0x1000 | 0x20 | 1)
if given["user"]:
    os.setgroups([]); os.setgid(given["user"]); os.setuid(given["user"])
rows = [(0x20, 0, 0, 0)]
for number, error in given["refused"].items():
    rows += [(0x15, 0, 1, int(number)), (0x06, 0, 0, 0x00050000 | error)]
rows.append((0x06, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(program)))
if given["refused"]:
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, filter_, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(given["python"], [given["python"], "-m", "deploy_runner", *sys.argv[1:]])
"""

_CALLS = {"x86_64": {"unshare": 272, "mount": 165}, "aarch64": {"unshare": 97, "mount": 40}}
_EPERM, _ENOSYS = 1, 38
NO_LANDLOCK = dict.fromkeys((444, 445, 446), _ENOSYS)
NO_NAMESPACES = dict.fromkeys(_CALLS.get(os.uname().machine, {}).values(), _EPERM)


class Kernel(NamedTuple):
    """Whose run it is, and what the kernel refuses it."""

    user: int
    refused: dict[int, int] = {}  # noqa: RUF012 - a NamedTuple's default, never altered
    read_only_proc: bool = False


ROOT, ORDINARY = Kernel(0), Kernel(USER)
KERNELS = {
    "root": ROOT,
    "a user": ORDINARY,
    "root without namespaces": Kernel(0, NO_NAMESPACES),
    "a user without namespaces": Kernel(USER, NO_NAMESPACES),
    "a user whose user namespaces can't be used": Kernel(USER, read_only_proc=True),
    "root without landlock": Kernel(0, NO_LANDLOCK),
    "a user without landlock": Kernel(USER, NO_LANDLOCK),
}


class Attacked:
    """A project of the user whose run it is, and its runs."""

    def __init__(self, folder: Path, kernel: Kernel) -> None:
        self.project = Project(folder)
        self.kernel = kernel
        self.python = sys.executable
        self.project.write("stages/texts.py", TEXT_STAGES)
        self.project.env |= {"HOME": str(folder / "home")}

    def pipeline(self, stages: str) -> None:
        """Write the pipeline."""
        self.project.pipeline(stages)

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start the command line as the user, on the kernel."""
        self._hand_over()
        given = {"user": self.kernel.user, "refused": self.kernel.refused,
                 "read_only_proc": self.kernel.read_only_proc, "python": self.python,
                 "needed": [sys.base_prefix, sys.prefix, str(ROOT_FOLDER)]}  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, json.dumps(given), *args],
            cwd=self.project.folder, env={**self.project.env, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def cli(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line; no traceback reaches the user."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in out + err, out + err
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def run(self, *args: str, **env: str) -> dict[str, Any]:
        """Run the pipeline; return its record."""
        done = self.cli("run", "--json", *args, **env)
        assert done.stdout, done.stderr
        folder = self.project.folder / ".deploy-runner/runs" / json.loads(done.stdout.splitlines()[-1])["run"]
        record: dict[str, Any] = json.loads((folder / "record.json").read_text())
        return record

    def _hand_over(self) -> None:
        if self.kernel.user:
            subprocess.run(["chown", "-R", str(self.kernel.user), str(self.project.folder)], check=True)


@contextmanager
def attacked(kernel: Kernel, *, within: str | None = None) -> Iterator[Attacked]:
    """Give a project to a user, in a folder that the user can reach."""
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    folder = Path(tempfile.mkdtemp(prefix="deploy-runner-", dir=within))
    folder.chmod(0o755)
    try:
        yield Attacked(folder / "project", kernel)
    finally:
        shutil.rmtree(folder)


def running(argument: str) -> list[int]:
    """Return the ids of the processes on this machine with such an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
