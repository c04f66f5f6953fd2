"""Programs of torch run code when they are loaded: not without trust, and with it in the sandbox."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy_runner.errors import StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import Project


class Command:
    """Unpickled, it runs a command of the shell."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def changed(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy an archive with other records."""
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as made:
        for name in given.namelist():
            made.writestr(name, change(name, given.read(name)))
    return target


def program(folder: Path) -> Path:
    exported = torch.export.export(
        torch.nn.Linear(2, 2).eval(), (torch.zeros(3, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(exported, folder / "right.pt2")
    return folder / "right.pt2"


def pickled_inputs(folder: Path, command: str) -> Path:
    """Write a program whose example inputs are a pickle that runs a command."""
    made = io.BytesIO()
    torch.save(Command(command), made, pickle_module=pickle)

    def change(name: str, record: bytes) -> bytes:
        return made.getvalue() if "sample_inputs" in name else record

    return changed(program(folder), folder / "inputs.pt2", change)


def pickled_weight(folder: Path, command: str) -> Path:
    """Write a program one of whose weights is a pickle that runs a command."""
    made = io.BytesIO()
    torch.save(Command(command), made, pickle_module=pickle)

    def change(name: str, record: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            config = json.loads(record)
            first = next(iter(config["config"].values()))
            first["use_pickle"] = True
            return json.dumps(config).encode()
        return made.getvalue() if name.endswith("weights/weight_0") else record

    return changed(program(folder), folder / "weight.pt2", change)


def evaluated_size(folder: Path, command: str) -> Path:
    """Write a program in which the expression of a size runs a command."""

    def change(name: str, record: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return record
        code = f"__import__('os').system('{command}')"
        return re.sub(rb"Symbol\('\w+'[^\"]*\)", lambda found: code.encode(), record)

    return changed(program(folder), folder / "size.pt2", change)


HOSTILE = [pickled_inputs, pickled_weight, evaluated_size]


@pytest.mark.parametrize("make", HOSTILE)
@pytest.mark.parametrize(
    ("uses", "name"), [("model.program", "program"), ("checkpoint.state_dict", "checkpoint")]
)
def test_nothing_of_a_program_runs_without_trust(
    tmp_path: Path, make: Callable[[Path, str], Path], uses: str, name: str
) -> None:
    path = make(tmp_path, f"touch {tmp_path}/canary")
    with pytest.raises(
        StageError, match=r"is a torch.export program \(.pt2\).*: loading it runs code"
    ) as error:
        run_stage(stage(uses), tmp_path / "run", inputs={name: path})
    assert "if you trust it, set `trust: true` on the stage" in error.value.fix
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("make", HOSTILE)
def test_with_trust_it_stays_in_the_sandbox(tmp_path: Path, make: Callable[[Path, str], Path]) -> None:
    project = Project(tmp_path / "project")
    place = project.folder / "canary"
    command = f"touch {place}; cat /etc/hostname > /dev/null; ls {tmp_path}/secret; echo it has run"
    project.write("secret/key", "secret")
    make(project.folder, command)
    made = next(path for path in project.folder.glob("*.pt2") if path.name != "right.pt2")
    project.pipeline(f"m: {{uses: model.program, trust: true, inputs: {{program: {made.name}}}}}")
    project.run(exits=None)
    said = project.cli("show", "m", exits=None).stdout + "".join(
        path.read_text() for path in (project.folder / ".deploy-runner/runs").rglob("*.jsonl")
    )
    assert "it has run" in said
    assert not place.exists()


def test_an_honest_program_is_taken_with_trust_and_its_report_says_so(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    program(project.folder)
    project.pipeline("m: {uses: model.program, trust: true, inputs: {program: right.pt2}}")
    assert project.run()["stages"]["m"]["state"] == "ran"
