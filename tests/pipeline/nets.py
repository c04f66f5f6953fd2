"""Write a net of one's own into a project, and take it through stage types."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage

__all__ = ["HEAD", "net", "prepare", "run"]

HEAD = """
from __future__ import annotations
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, TypedDict
import torch
from torch import Tensor, nn
from torch.nn import functional
"""


def run(uses: str, folder: Path, **given: Any) -> StageRun:
    """Run a stage type below a folder."""
    return run_stage(stage(uses), folder / uses, **given)


def net(folder: Path, source: str) -> Any:
    """Write `source`, which defines Net, and return an instance of it, with the weights that `prepare` takes."""
    file = _file(folder, source)
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.Net().eval()


def prepare(folder: Path, source: str, example: Any, **params: Any) -> StageRun:
    """Make the bundle of a net."""
    folder.mkdir(exist_ok=True)
    own, file = net(folder, source), _file(folder, source)
    weights = {name: tensor.contiguous() for name, tensor in own.state_dict().items()}
    save_file(weights or {"none": torch.zeros(1)}, folder / "w.safetensors")
    params = {"factory": f"{file.name}:Net", "example": example} | params
    return run(
        "model.prepare", folder, project=folder, inputs={"weights": folder / "w.safetensors"}, params=params
    )


def _file(folder: Path, source: str) -> Path:
    """Write a net, under a name of its own: TorchScript keeps sources by their names."""
    file = folder / f"net_{zlib.crc32(source.encode())}.py"
    file.write_text(HEAD + source)
    return file
