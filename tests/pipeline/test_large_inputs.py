"""An input of 1 MiB or more is read where it is: nothing is copied, and nobody can write to it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.security.hostile import NO_NAMESPACES, USER, Kernel, attacked, needs_mounts
from tests.waiting import wait_until

CONTENT = bytes(range(256)) * 8192
KERNELS = {"root": Kernel(0), "a user": Kernel(USER), "root without namespaces": Kernel(0, NO_NAMESPACES)}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_stage_reads_the_file_itself_where_it_may_have_mounts_and_else_a_copy(kernel: Kernel) -> None:
    with attacked(kernel) as target:
        big = target.project.write("big.bin", CONTENT)
        target.pipeline("""
            a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y.bin, i: i.txt},
                with: {command: "cat $INPUT_X > $OUTPUT_Y; stat -c %i $INPUT_X > $OUTPUT_I"}}
            b: {uses: run.command, inputs: {y: "${{ stages.a.outputs.y }}"}, outputs: {s: s.txt, i: i.txt},
                with: {command: "sha256sum < $INPUT_Y > $OUTPUT_S; stat -c %i $INPUT_Y > $OUTPUT_I"}}
        """)
        target.run()
        project, digest = target.project, hashlib.sha256(CONTENT).hexdigest()
        read = [int(project.output(f"{stage}.i")) for stage in "ab"]
        there = [
            path.stat().st_ino
            for path in (big, project.folder / f".deploy-runner/cas/sha256/{digest[:2]}/{digest[2:]}")
        ]
        assert (read == there) is not bool(kernel.refused)
        assert project.output("b.s").split()[0].decode() == digest


@needs_mounts
def test_nothing_writes_to_it_and_what_to_do_is_said(project: Project) -> None:
    big = project.write("big.bin", CONTENT)
    code = "def run({}):\n    open(x, 'ab').write(b'!')\n    y.write_text('')\n"
    project.write("code.py", code.format("x, y"))
    tries = {
        "appends": "echo a >> $INPUT_X",
        "removes": "rm -f $INPUT_X",
        "moves": "mv $INPUT_X $OUTPUT_Y",
        "opens": "chmod u+w $INPUT_X",
        "edits": "cp $INPUT_MADE $OUTPUT_Y; echo a >> $OUTPUT_Y",
    }
    rows = [f"""{name}: {{uses: run.command, inputs: {{x: big.bin, made: "${{{{ stages.a.outputs.y }}}}"}},
        outputs: {{y: y}}, with: {{command: "{command}"}}}}""" for name, command in tries.items()]  # fmt: skip
    copied = "a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y}, with: {command: cat $INPUT_X > $OUTPUT_Y}}"
    project.pipeline("\n".join([copied, *rows]))
    said = project.cli("run", exits=1).stdout
    advised = "an input of 1 MiB or more can't be written, moved or removed: copy its content by"
    assert said.count(advised) == len(tries), said
    assert big.read_bytes() == CONTENT
    assert project.cli("cache", "verify").returncode == 0


@needs_mounts
def test_one_that_is_written_to_meanwhile_fails_the_stage(project: Project) -> None:
    big = project.write("big.bin", CONTENT)
    project.pipeline("""
        a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y.txt},
            with: {command: "echo begun; until grep -aq meanwhile $INPUT_X; do :; done; date > $OUTPUT_Y"}}
    """)
    process = begun(project)
    with big.open("r+b") as file:
        file.write(b"meanwhile")
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "big.bin was written to while the stage read it (run again once that is done)" in out


@needs_mounts
def test_one_that_is_replaced_meanwhile_stays_what_it_was_for_the_stage(project: Project) -> None:
    big = project.write("big.bin", CONTENT)
    project.pipeline("""
        a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y.txt},
            with: {command: "echo begun; until test $(stat -c %h $INPUT_X) = 0; do :; done; sha256sum < $INPUT_X > $OUTPUT_Y"}}
    """)
    process = begun(project)
    os.replace(project.write("new.bin", CONTENT[:-1]), big)
    assert "1 ran" in process.communicate(timeout=60)[0]
    assert project.output("a", "--run", "1").split()[0].decode() == hashlib.sha256(CONTENT).hexdigest()
    assert "big.bin changed" in project.cli("plan").stdout


def begun(project: Project) -> subprocess.Popen[str]:
    """Start a run, and return once its stage says that it has begun."""
    process = project.start("run")
    wait_until(lambda: any((project.folder / ".deploy-runner/runs").glob("*/logs/a.log")))
    return process


def test_a_folder_holds_large_files_and_copies_which_can_be_written(project: Project) -> None:
    project.write("data/nested/big.bin", CONTENT)
    project.write("data/small.txt", "small")
    project.write("data/tool", CONTENT).chmod(0o755)
    project.pipeline("""
        a: {uses: run.command, inputs: {d: data}, outputs: {d: d/},
            with: {command: "cp -r $INPUT_D $OUTPUT_D; test -x $INPUT_D/tool; echo new > $INPUT_D/nested/new;
              echo more >> $INPUT_D/small.txt"}}
        b: {uses: run.command, inputs: {d: "${{ stages.a.outputs.d }}"}, outputs: {d: d/},
            with: {command: "cp -r $INPUT_D $OUTPUT_D"}}
    """)
    stages = project.run()["stages"]
    assert stages["a"]["outputs"] == stages["b"]["outputs"]
    project.cli("get", "b", "--to", "got")
    assert (project.folder / "got/nested/big.bin").read_bytes() == CONTENT
    assert (project.folder / "data/small.txt").read_text() == "small"


def test_a_kept_workdir_holds_all_inputs(project: Project) -> None:
    project.write("big.bin", CONTENT)
    project.pipeline(
        "a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y}, with: {command: date > $OUTPUT_Y}}"
    )
    kept = Path(project.run("--keep-workdirs")["stages"]["a"]["workdir"])
    assert (kept / "inputs/x.bin").read_bytes() == CONTENT


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away needs root")
def test_what_root_alone_may_read_of_another_user_is_copied(project: Project) -> None:
    big = project.write("big.bin", CONTENT)
    os.chown(big, USER, USER)
    big.chmod(0o600)
    project.pipeline(
        "a: {uses: run.command, inputs: {x: big.bin}, outputs: {y: y}, with: {command: cp $INPUT_X $OUTPUT_Y}}"
    )
    assert project.states() == {"a": "ran"}
