"""Links to nothing, pipes, sockets, odd names and modes: one true sentence, or taken as they are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy_runner.errors import StoreError
from deploy_runner.store.cas import Store
from tests.conftest import Project

NAMED = "has a name that can't be stored (rename it: printable characters, in UTF-8)"


def listen(place: Path) -> None:
    """Leave a socket, whose path may be too long for one."""
    here = os.open(place.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{place.name}")
    os.close(here)


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("l", lambda p: p.symlink_to("no\nwhere"),
         "{0}/l is a symbolic link to 'no\\nwhere', which does not exist (remove it)"),
        ("l", lambda p: p.symlink_to("l"), "{0}/l is a symbolic link that leads back to itself (remove it)"),
        ("l", lambda p: p.symlink_to(".."), "{0}/l is a symbolic link inside a folder (copy it there)"),
        ("p", os.mkfifo, "{0}/p is neither a file nor a folder (remove it)"),
        ("s", listen, "{0}/s is neither a file nor a folder (remove it)"),
        ("a\nb", Path.touch, "'{0}/a\\nb' " + NAMED),
        ("a\udcff", Path.mkdir, "'{0}/a\\udcff' " + NAMED),
    ],
)  # fmt: skip
def test_an_input_folder_with_what_no_artifact_keeps(
    tmp_path: Path, name: str, make: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "project/data/sub"
    folder.mkdir(parents=True)
    make(folder / name)
    with pytest.raises(StoreError, match=r"\A.*\Z") as error:
        Store(tmp_path / "home").digest_path(f"{tmp_path}/project/data", f"{tmp_path}/project")
    assert str(error.value) == said.format(folder)


OUTPUTS = {
    "dangling": ("ln -s nowhere l", "its output `o` (o): output l is a symbolic link (write a copy instead)"),
    "fifo": ("mkfifo p", "its output `o` (o): p is not a regular file"),
    "bytes": ("touch $(printf 'a\\377')", "its output `o` (o): 'a\\udcff' " + NAMED),
    "line": ("mkdir \"$(printf 'a\\nb')\"", "its output `o` (o): 'a\\nb' " + NAMED),
    "undeclared": (
        "touch ../$(printf 'a\\377')",
        "it wrote 'a\\udcff', which is not a declared output (declare it under `outputs:`, or write it to the "
        "scratch folder)",
    ),
}
HERE = "mkdir outputs/o; cd outputs/o; "
MODES = "touch u r/x; chmod 0 u; chmod 111 r/x; chmod 555 r; chmod 0 z; cd ..; chmod 500 o"


def test_odd_outputs_fail_their_stage_in_one_sentence_and_odd_modes_are_taken(project: Project) -> None:
    become = ["unshare", "--user", "--map-user=4321", "--map-group=4321"]
    if subprocess.run([*become, "true"], check=False, capture_output=True).returncode:
        become = []
    commands = {name: do for name, (do, _) in OUTPUTS.items()} | {"modes": f"mkdir r z; {MODES}"}
    lines = [
        f"{name}: {{uses: run.command, outputs: {{o: o/}}, with: {{command: {json.dumps(f'{HERE}{do}')}}}}}"
        for name, do in commands.items()
    ]
    figure = "ctx.figure('name', 'a\\udcff'); outputs['o'].write_text('x')"
    project.write("step.py", f"def step(ctx, inputs, outputs):\n    {figure}\n")
    lines.append("figure: {uses: run.python, outputs: {o: o}, with: {function: step.py:step}}")
    project.pipeline("\n".join(lines))
    wrapper = project.write(
        "as-anybody", "#!/bin/sh\nexec " + " ".join((*become, project.python)) + ' "$@"\n'
    )
    wrapper.chmod(0o755)
    project.python = str(wrapper)
    stages = project.run(exits=1)["stages"]
    assert {name: stages[name]["error"] for name in OUTPUTS} == {n: said for n, (_, said) in OUTPUTS.items()}
    assert (stages["modes"]["state"], stages["figure"]["figures"]) == ("ran", {"name": "a?"})
    project.cli("get", "modes", "--to", "got")
    modes = {p.name: p.stat().st_mode & 0o777 for p in (project.folder / "got").rglob("*")}
    assert modes == {"r": 0o755, "x": 0o755, "u": 0o644, "z": 0o755}
