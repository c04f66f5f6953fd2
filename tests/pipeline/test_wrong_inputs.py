"""Every stage type refuses what is not its input in one sentence, whatever the file holds."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.errors import StageError
from deploy_runner.interface import input_shapes
from deploy_runner.registry import Registry
from deploy_runner.testing import run_stage
from tests.conftest import ROOT

REQUIRED: dict[str, dict[str, Any]] = {
    "model.prepare": {"factory": "models.py:mlp", "example": {"shape": [1, 64]}},
    "checkpoint.resume_check": {"factory": "models.py:mlp", "optimizer": "Adam"},
}

ANY_FILE = ("verify.size", "package.sign", "run.command", "run.python")
"""What takes every file."""

KINDS = [k.cls for k in Registry(ROOT / "tests").all() if not k.cls.network and k.cls.uses not in ANY_FILE]


def junk(path: Path) -> Path:
    path.write_bytes(b"neither a model nor an array\n" * 9)
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    return path


def arrays(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), z=np.zeros((0, 3)))
    return path.with_suffix(".npz").rename(path)


def pickled(path: Path) -> Path:
    torch.save([torch.ones(1)], path)
    return path


def listed(path: Path) -> Path:
    path.write_text(json.dumps([1, 2, {"a": None}]))
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def broken_bundle(path: Path) -> Path:
    path.mkdir()
    (path / "bundle.json").write_text('{"factory": 3}')
    (path / "model.onnx").write_bytes(b"\x08\x07")
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make", [junk, empty, archive, arrays, pickled, listed, folder, broken_bundle], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.uses)
def test_what_is_not_its_input_is_one_sentence(tmp_path: Path, kind: Any, make: Any) -> None:
    (tmp_path / "models.py").write_text((ROOT / "tests/models/models.py").read_text())
    given: dict[str, Any] = {}
    for name, shape in input_shapes(kind).items():
        path = make(tmp_path / f"{name}.pt")
        fits = ("folder" if path.is_dir() else "file") in shape.kinds
        path = path if fits else (folder if "folder" in shape.kinds else junk)(tmp_path / f"{name}.other")
        given[name] = {"one": path, "dict": {"a": path}, "list": [path]}[shape.container]
    with pytest.raises(StageError) as error:
        run_stage(kind, tmp_path / "run", inputs=given, params=REQUIRED.get(kind.uses, {}), project=tmp_path)
    assert error.value.message
    assert "\n" not in error.value.message
    assert str(tmp_path) not in error.value.message
