"""What confines a worker: landlock where the kernel has it, and without it what there is, which is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project

# Answers ENOSYS to the three system calls of landlock, as a kernel without it does, and becomes a command.
NO_LANDLOCK = """
import ctypes, os, struct, sys
LOAD, AT_LEAST, MORE_THAN, RETURN = 0x20, 0x35, 0x25, 0x06
rows = [(LOAD, 0, 0, 0), (AT_LEAST, 0, 2, 444), (MORE_THAN, 1, 0, 446), (RETURN, 0, 0, 0x00050000 | 38), (RETURN, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rows), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, filter_, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.executable, [sys.executable, "-m", "deploy_runner", *sys.argv[1:]])
"""


MOUNTS = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def without_landlock(project: Project, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line under a seccomp filter that takes landlock away."""
    command = [sys.executable, "-c", NO_LANDLOCK, *args]
    return subprocess.run(
        command, cwd=project.folder, env=project.env, capture_output=True, text=True, check=False
    )


def stages(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])["stages"]
    return found


def test_without_landlock_a_run_says_so_and_goes_on(chain: Project) -> None:
    done = without_landlock(chain, "run", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in stages(done).values()} == {"ran"}
    guards = "read-only mounts and Python's audit hook guard" if MOUNTS else "only Python's audit hook guards"
    said = f"no landlock: {guards} files"
    assert f"warning: {said}" in done.stderr
    (record,) = (chain.folder / ".deploy-runner/runs").glob("*/record.json")
    assert json.loads(record.read_text())["sandbox"].startswith(said)
    assert said in without_landlock(chain, "doctor").stdout
    assert "warning" not in without_landlock(chain, "run", "--json").stderr


def test_without_landlock_an_undeclared_read_is_still_refused(project: Project) -> None:
    extra = project.write("data/extra.csv", "1,2")
    project.pipeline(f"sneaky: {{uses: text.odd, with: {{how: read, path: {extra}}}}}")
    done = without_landlock(project, "run", "--json")
    assert "it read data/extra.csv, which is not declared" in str(stages(done)["sneaky"]["error"])


@pytest.mark.parametrize("way", ["open(path, 'w')", "open(path, 'r+')", "os.remove(path)", "os.rename('x', path)",
                                 "os.open(path, os.O_RDWR)", "os.truncate(path, 0)", "os.chmod(path, 0)"])  # fmt: skip
def test_without_landlock_python_code_still_writes_nowhere_else(
    project: Project, tmp_path: Path, way: str
) -> None:
    target = tmp_path / "outside"
    target.write_text("as it was")
    project.write(
        "stages/writer.py",
        f"""
        import os
        from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
        class Writer(Stage):
            \"\"\"Write outside.\"\"\"
            uses = "text.writer"
            class Outputs(StageOutputs):
                text: File = Output("x.txt")
            def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
                open("x", "w").close()
                path = {str(target)!r}
                {way}
        """,
    )
    project.pipeline("w: {uses: text.writer}")
    done = without_landlock(project, "run", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PermissionError" in str(stages(done)["w"]["error"])
    assert target.read_text() == "as it was"


@pytest.mark.skipif(not MOUNTS, reason="a mount namespace needs root")
def test_without_landlock_a_command_finds_the_disk_read_only_and_cannot_undo_that(
    project: Project, tmp_path: Path
) -> None:
    target = tmp_path / "outside"
    undo = "mount -o remount,rw / || unshare -m mount -o remount,rw / || true"
    project.pipeline(
        f"a: {{uses: run.command, outputs: {{o: o}}, with: {{command: 'echo x > $OUTPUT_O; {undo}; echo x > {target}'}}}}"
    )
    error = str(stages(without_landlock(project, "run", "--json"))["a"]["error"])
    assert error.endswith("Read-only file system)")
    assert not target.exists()


def test_without_landlock_there_is_still_no_network(project: Project, used_port: int) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace needs root")
    project.pipeline(f'caller: {{uses: text.odd, with: {{how: connect, path: "{used_port}"}}}}')
    error = str(stages(without_landlock(project, "run", "--json"))["caller"]["error"])
    assert "OSError" in error or "ConnectionRefusedError" in error


def test_a_worker_has_no_credentials_and_private_copies_of_its_inputs(project: Project) -> None:
    project.env |= {"AWS_SECRET_ACCESS_KEY": "never", "HF_TOKEN": "never", "SSH_AUTH_SOCK": "/never"}
    project.pipeline("""
        env: {uses: text.odd, with: {how: env}}
        a: {uses: text.upper, inputs: {text: in.txt}}
        spoil: {uses: run.command, inputs: {one: in.txt, two: "${{ stages.a.outputs.text }}"}, outputs: {o: o},
                with: {command: "echo spoilt > $INPUT_ONE; echo spoilt > $INPUT_TWO; touch $OUTPUT_O"}}
        """)
    project.run()
    names = project.output("env").decode().split()
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "SSH_AUTH_SOCK"} & set(names)
    assert (project.folder / "in.txt").read_text() == "hello"
    assert project.output("a") == b"HELLO"
    project.cli("cache", "verify")
