"""Tab in a real shell: bash, zsh and fish complete verbs, options, pipelines, stages, outputs and runs."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project

_WAIT_S = 60
_ASKED = "deploy_runner.cli"


def completed(project: Project, line: str) -> list[str]:
    """Return what bash is offered after this line, by the function that it has been given."""
    program = (
        'eval "$(deploy-runner completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; COMP_TYPE=9; COMP_KEY=9; '
        '_python_argcomplete deploy-runner; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program, "bash", line], cwd=project.folder, env=environment(project), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [word.rstrip() for word in done.stdout.splitlines() if word]


def environment(project: Project) -> dict[str, str]:
    return {**project.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "xterm"}


@pytest.fixture
def ran(project: Project) -> Project:
    project.pipeline(
        """
        a: {uses: text.upper, inputs: {text: in.txt}}
        more: {uses: text.upper, matrix: {n: [1, 2]}, inputs: {text: in.txt}, with: {times: "${{ matrix.n }}"}}
        """
    )
    project.write(
        "other/nested.yml", "version: 1\nname: n\nstages: {far: {uses: text.upper, inputs: {text: in.txt}}}\n"
    )
    project.run()
    return project


def test_bash_completes_every_kind_of_name(ran: Project) -> None:
    assert completed(ran, "deploy-runner va") == ["validate"]
    assert {"--config", "--cpu"} <= set(completed(ran, "deploy-runner run --c"))
    folders_and_files = ["other/", "pipeline.yaml", "stages/"]
    instances = [r"more\[1\]", r"more\[2\]"]
    assert completed(ran, "deploy-runner run ") == [*folders_and_files, "a", "more", *instances]
    assert completed(ran, "deploy-runner run --json other/nested.yml f") == ["far"]
    assert completed(ran, r"deploy-runner get more\[1\].") == [r"more\[1\].text"]
    (run,) = completed(ran, "deploy-runner show --run ")
    assert run.startswith("000001-")
    assert completed(ran, "deploy-runner stages text.") == ["text.join", "text.odd", "text.upper"]


def test_tab_makes_nothing_and_imports_nothing_heavy(project: Project) -> None:
    """Also where there is no store yet, or no valid pipeline."""
    project.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    assert completed(project, "deploy-runner get ")[-1] == "a"
    assert not (project.folder / ".deploy-runner").exists()
    line = "deploy-runner run "
    program = "import sys; from deploy_runner.cli import main; main()"
    done = subprocess.run(
        ["bash", "-c", f'"$0" -X importtime -c "{program}" 8>&1 9>/dev/null', sys.executable],
        cwd=project.folder, capture_output=True, text=True, check=True,
        env={**environment(project), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_LINE": line,
             "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_IFS": "\n"},
    )  # fmt: skip
    assert "pipeline.yaml" in done.stdout
    modules = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argcomplete" in modules
    assert modules.isdisjoint({"torch", "numpy", "boto3", "pydantic", "jinja2", "rich"})
    project.write("pipeline.yaml", "version: [1\n")
    assert completed(project, "deploy-runner run ") == ["pipeline.yaml", "stages/"]


def typed(project: Project, command: list[str], ready: str, line: str, shows: str) -> None:
    """Type a line that ends with Tab into a shell on a terminal, and see what the shell adds."""
    shell, ours = pty.fork()
    if shell == 0:
        os.chdir(project.folder)
        os.execvpe(command[0], command, environment(project))
    try:
        os.write(ours, ready.encode())
        read_until(ours, "set-up-done")
        os.write(ours, line.encode())
        read_until(ours, shows)
    finally:
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        os.close(ours)


def read_until(fd: int, text: str) -> None:
    seen = ""
    while text not in seen:
        assert select.select([fd], [], [], _WAIT_S)[0], f"no {text!r} in {seen!r}"
        seen += os.read(fd, 4096).decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "ready"),
    [
        (["bash", "--norc", "-i"], 'eval "$(deploy-runner completion bash)"; echo set-up-"done"\n'),
        (["zsh", "-f", "-i"],
         'autoload -U compinit; compinit -D -u; eval "$(deploy-runner completion zsh)"; echo set-up-"done"\n'),
    ],
    ids=["bash", "zsh"],
)  # fmt: skip
def test_tab_on_a_terminal(ran: Project, command: list[str], ready: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    typed(ran, command, ready, "deploy-runner val\tpip\t\r", "pipeline.yaml: valid, 3 stages")


@pytest.mark.slow
def test_fish_completes(ran: Project) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    program = 'deploy-runner completion fish | source; complete -C "deploy-runner run mo"; complete -C "deploy-runner val"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], cwd=ran.folder, env=environment(ran), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [
        "more",
        "more[1]",
        "more[2]",
        "validate",
    ]
