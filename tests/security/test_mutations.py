"""Honest files with a few bytes changed: each is read, or refused in one sentence; nothing else happens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.security.corpus import onnx_model

PROGRAM = """
import json, random, sys, warnings, resource
from pathlib import Path
warnings.simplefilter("ignore")
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from deploy_runner.errors import DeployRunnerError
from deploy_runner.registry import Registry
from deploy_runner.testing import run_stage

uses, name, source, folder, count = *sys.argv[1:3], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
stage = Registry(Path.cwd()).get(uses).cls
original, counts = source.read_bytes(), {"read": 0, "refused": 0}
run_stage(stage, folder / "run", inputs={name: source})  # As it is it is read, whatever comes of the mutations.
for index in range(count):
    rng, data = random.Random(index), bytearray(original)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(data))
        what = rng.random()
        if what < 0.6: data[at] = rng.randrange(256)
        elif what < 0.7: del data[at : at + rng.randrange(1, 40)]
        elif what < 0.8: data[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif what < 0.9: data[at : at + 8] = rng.choice((b"\\xff" * 8, bytes(8), b"\\x7f" + b"\\xff" * 7))
        else: del data[at:]
        if not data: data = bytearray(b"x")
    source.write_bytes(bytes(data))
    try:
        run_stage(stage, folder / "run", inputs={name: source})
        counts["read"] += 1
    except DeployRunnerError as error:
        assert "\\n" not in error.message and len(error.message) < 1000, (index, error.message)
        counts["refused"] += 1
    except BaseException as error:
        print(f"mutation {index}: {type(error).__name__}: {error}", file=sys.stderr)
        raise
print(json.dumps(counts))
"""


def checkpoint(folder: Path) -> Path:
    module = torch.nn.Linear(3, 2)
    content = {"epoch": 3, "model_state_dict": module.state_dict(), "log": [1.0, "two", {"a": (1, 2)}]}
    torch.save(content, folder / "c.pt")
    return folder / "c.pt"


def legacy(folder: Path) -> Path:
    torch.save({"weight": torch.ones(3)}, folder / "c.pt", _use_new_zipfile_serialization=False)
    return folder / "c.pt"


def safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, folder / "c.safetensors")
    return folder / "c.safetensors"


def onnx_file(folder: Path) -> Path:
    return onnx_model(folder / "m") / "model.onnx"


FILES = {
    "checkpoint": ("checkpoint.state_dict", "checkpoint", checkpoint),
    "legacy": ("checkpoint.state_dict", "checkpoint", legacy),
    "safetensors": ("checkpoint.state_dict", "checkpoint", safetensors),
    "onnx": ("onnx.check", "model", onnx_file),
}


def mutate(folder: Path, kind: str, count: int) -> dict[str, int]:
    """Give so many mutations to the stage, all in one process, which has to live through them."""
    uses, name, make = FILES[kind]
    command = [sys.executable, "-c", PROGRAM, uses, name, str(make(folder)), str(folder), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-1500:]}"
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    found = mutate(tmp_path, kind, 100)
    assert found["read"] + found["refused"] == 100
    assert found["refused"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_ten_thousand_mutated_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    found = mutate(tmp_path, kind, 2500)
    assert found["read"] + found["refused"] == 2500
    assert min(found.values()) > 0
