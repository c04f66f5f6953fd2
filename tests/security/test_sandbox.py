"""What confines a worker is said, and can be asked for; stages that need children, threads and sockets work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.security.hostile import NO_LANDLOCK, NO_NAMESPACES, USER, Attacked, Kernel, attacked

OPEN = {"root": Kernel(0, NO_LANDLOCK | NO_NAMESPACES), "a user": Kernel(USER, NO_LANDLOCK | NO_NAMESPACES)}
FULL = {"root": Kernel(0), "a user": Kernel(USER)}
FILES = "files, but for Python's audit hook"


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """A project of the user, on the kernel, that the test names."""
    with attacked(request.param) as made:
        made.project.write("in.txt", "hello")
        yield made


def on(kernels: dict[str, Kernel]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("target", kernels.values(), ids=kernels, indirect=True)


@on(OPEN)
def test_where_there_is_neither_landlock_nor_a_namespace_a_run_says_so_and_goes_on(target: Attacked) -> None:
    target.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    done = target.cli("run")
    assert done.returncode == 0, done.stderr
    assert f"warning: stages were not kept from {FILES}, " in done.stderr
    (record,) = (target.project.folder / ".deploy-runner/runs").glob("*/record.json")
    data = json.loads(record.read_text())
    assert data["unconfined"][0] == FILES
    assert f"; not kept from {FILES}, " in data["sandbox"]
    assert data["stages"]["a"]["sandbox"] == data["sandbox"]
    assert f"not kept from {FILES}, " in target.cli("doctor").stdout
    assert "warning" not in target.cli("run").stderr


@on(FULL)
def test_where_all_is_confined_nothing_is_lacking(target: Attacked) -> None:
    target.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    said = ("a root folder of its own, landlock ", ", at most ", " processes, no capabilities, "
            "processes of its own, no network")  # fmt: skip
    done = target.cli("run", "--require-sandbox")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    (record,) = (target.project.folder / ".deploy-runner/runs").glob("*/record.json")
    data = json.loads(record.read_text())
    assert data["unconfined"] == []
    assert all(part in data["sandbox"] for part in said)
    doctor = target.cli("doctor").stdout
    assert all(part in doctor for part in said)


@on({"root": Kernel(0, NO_NAMESPACES), **{f"{name}, open": kernel for name, kernel in OPEN.items()}})
def test_a_run_that_requires_the_sandbox_starts_nothing_without_it(target: Attacked) -> None:
    target.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    done = target.cli("run", "--require-sandbox")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "can't keep" in line]
    assert "making processes without end" in line or FILES in line
    assert "as --require-sandbox asks" in line
    assert not target.project.objects()
    assert target.cli("run").returncode == 0
    assert target.cli("run", "--require-sandbox").returncode == 0  # Everything is a hit: nothing runs.


LOOKS = {
    "read": 'open(ROOT / "data/extra.csv")',
    "looked for": '(ROOT / "data/extra.csv").exists()',
    "listed": 'os.listdir(ROOT / "data")',
}


@on({**OPEN, "a user without namespaces": Kernel(USER, NO_NAMESPACES)})
def test_without_a_root_of_its_own_what_a_stage_learns_of_other_files_still_fails_it(
    target: Attacked,
) -> None:
    target.project.write("data/extra.csv", "1,2")
    code = "import os\nfrom pathlib import Path\nROOT = Path(__file__).resolve().parent\n"
    rows = []
    for i, look in enumerate(LOOKS.values()):
        code += f"def f{i}(ctx, inputs, outputs):\n    outputs['o'].write_text(str({look}))\n"
        rows.append(f"s{i}: {{uses: run.python, outputs: {{o: o}}, with: {{function: 'steps.py:f{i}'}}}}")
    target.project.write("steps.py", code)
    target.pipeline("\n".join(rows))
    stages = target.run()["stages"]
    for i, verb in enumerate(LOOKS):
        path = "data" if verb == "listed" else "data/extra.csv"
        said = f"it {verb} {path} (steps.py:{5 + 2 * i}), which is not declared"
        assert said in stages[f"s{i}"]["error"]


WRITER = """
    import os
    from deploy_runner.sdk import Context, File, Output, Stage, StageInputs, StageOutputs, StageParams
    class Writer(Stage):
        \"\"\"Write outside.\"\"\"
        uses = "text.writer"
        class Params(StageParams):
            path: str
        class Outputs(StageOutputs):
            text: File = Output("x.txt")
        def run(self, ctx: Context, params: Params, inputs: StageInputs, outputs: Outputs) -> None:
            path = params.path
            open("x", "w").close()
            ways = (lambda: open(path, "w"), lambda: open(path, "r+"), lambda: os.remove(path),
                    lambda: os.rename("x", path), lambda: os.open(path, os.O_RDWR),
                    lambda: os.truncate(path, 0), lambda: os.chmod(path, 0))
            for way in ways:
                try: way()
                except OSError as error: print(type(error).__name__)
                else: print("done")
            outputs.text.write_text("x")
    """


@on({**FULL, **{f"{name}, open": kernel for name, kernel in OPEN.items()}})
def test_python_code_writes_nowhere_else_on_any_kernel(target: Attacked) -> None:
    beside = target.project.folder.parent / "beside"
    beside.mkdir()
    beside.chmod(0o777)
    outside = beside / "outside.txt"
    outside.write_text("as it was")
    outside.chmod(0o666)
    target.project.write("stages/writer.py", WRITER)
    target.pipeline(f"w: {{uses: text.writer, with: {{path: {outside}}}}}")
    assert target.run()["ran"] == 1
    (log,) = (target.project.folder / ".deploy-runner/runs").glob("*/logs/w.log")
    assert "done" not in log.read_text()
    assert len(log.read_text().split()) == 7
    assert outside.read_text() == "as it was"


@on(
    {
        "root": Kernel(0, NO_LANDLOCK),
        "a user": Kernel(USER, NO_LANDLOCK),
        **{f"{n}, full": k for n, k in FULL.items()},
    }
)
def test_a_command_sees_nothing_outside_and_cannot_undo_that(target: Attacked) -> None:
    outside = target.project.write("outside.txt", "as it was")
    undo = "mount -o remount,rw / || unshare -m mount -o remount,rw / || unshare -rm true || true"
    target.pipeline(
        f"a: {{uses: run.command, outputs: {{o: o}}, with: {{command: 'echo x > $OUTPUT_O; {undo}; cat {outside} || echo x > {outside}'}}}}"
    )
    error = target.run()["stages"]["a"]["error"]
    refusals = ("Read-only file system", "Directory nonexistent", "No such file or directory")
    assert error.endswith(tuple(f"{refusal}; declare outside.txt as an input)" for refusal in refusals))
    assert outside.read_text() == "as it was"


def test_a_root_run_reads_the_closed_project_of_another_user(tmp_path: Path) -> None:
    with attacked(Kernel(0)) as target:
        target.project.write("in.txt", "hello")
        target.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
        for path in (target.project.folder, *target.project.folder.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        subprocess.run(["chown", "-R", str(USER), str(target.project.folder)], check=True)
        record = target.run()
        assert record["ran"] == 1, record
        assert "no capability but to read any file it sees" in record["sandbox"]


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
