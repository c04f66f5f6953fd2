"""What a stage leaves in place of its outputs is never followed: links, pipes, other names of a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy_runner.store.removal import remove_tree
from tests.conftest import Project


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Somebody's folder, of which nothing may be read, moved or changed."""
    folder = tmp_path / "outside"
    (folder / "d").mkdir(parents=True)
    (folder / "one.txt").write_text("a secret")
    (folder / "d/one.txt").write_text("a secret")
    return folder


def seen(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mode, p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("output", "attack"),
    [
        pytest.param("d/one.txt", "rm -rf d; ln -s {outside} d", id="the output's folder"),
        pytest.param("d/one.txt", "cd ..; rm -rf outputs; ln -s {outside} outputs", id="all outputs"),
        pytest.param("d/one.txt", "cd ..; mv outputs o; ln -s o outputs", id="a link to itself"),
        pytest.param("a/d/one.txt", "rm -rf a; ln -s {outside} a", id="a component"),
        pytest.param("one.txt", "ln -s {outside}/one.txt one.txt", id="a file"),
        pytest.param("one.txt", "ln {outside}/one.txt one.txt || mkfifo one.txt", id="a hard link"),
        pytest.param("one.txt", "mkfifo one.txt", id="a pipe"),
        pytest.param("one.txt", "mknod one.txt c 1 5 || mkfifo one.txt", id="a device"),
        pytest.param("one.txt", "echo x > one.txt; ln one.txt ../scratch/two", id="another name"),
        pytest.param("one.txt", "echo x > one.txt; ln -s {outside} more", id="an undeclared link"),
        pytest.param("one.txt", "echo x > one.txt; mkfifo more", id="an undeclared pipe"),
        pytest.param("one.txt", "cd ..; rm -rf outputs; echo x > outputs", id="a file for outputs"),
    ],
)
def test_nothing_outside_is_read_or_moved(project: Project, outside: Path, output: str, attack: str) -> None:
    before = seen(outside)
    command = f"cd outputs; {attack.format(outside=outside)}"
    project.pipeline(f"a: {{uses: run.command, outputs: {{o: {output}}}, with: {{command: {command!r}}}}}")
    stage = project.run("--keep-workdirs", exits=1)["stages"]["a"]
    assert stage["state"] == "failed"
    assert seen(outside) == before
    assert not project.objects()


@pytest.mark.parametrize(
    "attack", ["ln -s {outside} d", "mkfifo p", "ln -s {outside}/one.txt one.txt", "echo x > y; ln y z",
               "for i in $(seq 70); do mkdir d; cd d; done; echo x > x"]
)  # fmt: skip
def test_a_folder_output_holds_files_only(project: Project, outside: Path, attack: str) -> None:
    before = seen(outside)
    project.write(
        "stages/shell.py",
        """
        from deploy_runner.sdk import Context, Folder, Output, Stage, StageInputs, StageOutputs, StageParams
        class Shell(Stage):
            \"\"\"Make a folder by a command.\"\"\"
            uses = "text.shell"
            class Params(StageParams):
                command: str
            class Outputs(StageOutputs):
                made: Folder = Output("o")
            def command(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> list[str]:
                return ["/bin/sh", "-euc", f"mkdir {outputs.made}; cd {outputs.made}; {params.command}"]
        """,
    )
    project.pipeline(f"a: {{uses: text.shell, with: {{command: {attack.format(outside=outside)!r}}}}}")
    assert "its output `made` (o): " in project.run(exits=1)["stages"]["a"]["error"]
    assert seen(outside) == before


@pytest.mark.parametrize("attack", ["shutil.rmtree(here); os.symlink(OUTSIDE, here)",
                                    "os.symlink(OUTSIDE, here / 'x'); os.mkfifo(here / 'p')"])  # fmt: skip
def test_the_evidence_of_a_refused_gate_follows_no_link(project: Project, outside: Path, attack: str) -> None:
    before = seen(outside)
    project.write(
        "stages/gate.py",
        f"""
        import os, shutil
        from deploy_runner.sdk import Context, File, GateError, Output, Stage, StageInputs, StageOutputs, StageParams
        OUTSIDE = {str(outside)!r}
        class Gate(Stage):
            \"\"\"Refuse.\"\"\"
            uses = "text.gate"
            class Outputs(StageOutputs):
                text: File = Output("x.txt")
            def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
                here = outputs.text.parent
                {attack}
                raise GateError("no")
        """,
    )
    project.pipeline("g: {uses: text.gate}")
    stage = project.run(exits=1)["stages"]["g"]
    assert (stage["error"], stage.get("evidence")) == ("no", None)
    assert seen(outside) == before


@pytest.mark.parametrize(
    "result", ["[" * 5000, '{"ok": true, "figures": 5}', '{"error": 7}', '{"undeclared": [[]]}', "null"]
)
def test_a_result_that_no_worker_writes_is_none(project: Project, result: str) -> None:
    project.write(
        "stages/liar.py",
        f"""
        import os
        from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
        class Liar(Stage):
            \"\"\"Write a result of its own.\"\"\"
            uses = "text.liar"
            class Outputs(StageOutputs):
                text: File = Output("x.txt")
            def run(self, ctx: Context, params: StageParams, inputs: StageInputs, outputs: Outputs) -> None:
                for fd in os.listdir("/proc/self/fd"):
                    if os.path.basename(os.path.realpath(f"/proc/self/fd/{{fd}}")) == "result.json":
                        os.write(int(fd), {result!r}.encode())
                os._exit(0)
        """,
    )
    project.pipeline("l: {uses: text.liar}")
    assert project.run(exits=1)["stages"]["l"]["error"] == "its worker exited 0"


def test_removing_a_folder_changes_no_mode_behind_a_link(tmp_path: Path) -> None:
    target, folder = tmp_path / "outside", tmp_path / "left"
    target.write_text("as it was")
    target.chmod(0o604)
    (folder / "locked").mkdir(parents=True)
    (folder / "locked" / "link").symlink_to(target)
    (folder / "locked").chmod(0o000)
    remove_as_anybody(folder, tmp_path)
    assert not folder.exists()
    assert target.stat().st_mode & 0o777 == 0o604


def remove_as_anybody(folder: Path, owned: Path) -> None:
    """Remove a folder as a user whom modes bind."""
    if os.geteuid():
        remove_tree(folder)
        return
    for path in (owned, folder, folder / "locked"):
        os.chown(path, 4321, 4321)
    pid = os.fork()
    if pid == 0:
        os.chdir(owned)
        os.setresuid(4321, 4321, 4321)
        remove_tree(folder.relative_to(owned))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_folder_as_deep_as_no_path_can_be_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(folder)
    assert not folder.exists()
