"""`model.program`: arguments and states of TorchScript, operators of other libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy_runner.errors import GateError, StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.conftest import Project

MODELS = """
import sys
from typing import Dict, List, Optional
import torch
import operators

class Optional_(torch.nn.Module):
    def forward(self, x, mask: Optional[torch.Tensor] = None, times: int = 2):
        if mask is not None:
            x = x * mask
        return x * times

class Listed(torch.nn.Module):
    def forward(self, xs: List[torch.Tensor]):
        return xs[0]

class Number(torch.nn.Module):
    def forward(self, x, times: int):
        return x * times

class Named(torch.nn.Module):
    def forward(self, x):
        return {"twice": x * 2, "more": x + 1}

class Odd(torch.nn.Module):
    def forward(self, x):
        return torch.ops.shop.twice(x) + 1

for kind in (Optional_, Listed, Number, Named, Odd):
    torch.jit.save(torch.jit.script(kind()), f"{kind.__name__}.pt")
size = torch.export.Dim("n")
torch.export.save(torch.export.export(Odd(), (torch.zeros(2, 3),), dynamic_shapes=({0: size},)), "Odd.pt2")
"""
OPERATORS = """
import torch

@torch.library.custom_op("shop::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@twice.register_fake
def _(x):
    return torch.empty_like(x)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that another process made: here nothing has registered their operators."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "models.py").write_text(MODELS)
    (folder / "operators.py").write_text(OPERATORS)
    subprocess.run([sys.executable, "-W", "ignore", "models.py"], cwd=folder, check=True)
    return folder


def taken(folder: Path, program: Path, **params: Any) -> Path:
    inputs = {"program": program}
    return run_stage(stage("model.program"), folder / "m", inputs=inputs, params=params, trust=True)["model"]


@pytest.mark.parametrize("names", [("x",), ("x", "mask")])
@pytest.mark.parametrize("uses", ["torch.script", "torch.trace", "torch.export", "onnx.export"])
def test_what_is_left_out_keeps_its_default(
    programs: Path, tmp_path: Path, names: tuple[str, ...], uses: str
) -> None:
    example = {name: {"shape": [2, 3]} for name in names}
    bundle = taken(tmp_path, programs / "Optional_.pt", example=example)
    found = run_stage(stage(uses), tmp_path / "run", inputs={"model": bundle})
    assert found.figures["max_abs"] <= found.figures["allowed"]


def test_outputs_keep_the_names_that_the_program_gives_them(programs: Path, tmp_path: Path) -> None:
    bundle = taken(tmp_path, programs / "Named.pt", example={"shape": [2, 3]})
    assert '"name": "twice"' in (bundle / "bundle.json").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Listed.pt", r"requires 'xs' of type List\[Tensor\], and only tensors can be given"),
        ("Number.pt", r"requires 'times' of type int, and only tensors can be given"),
        ("Odd.pt", r"uses the operator shop::twice, which torch doesn't have"),
        ("Odd.pt2", r"uses the operator shop::twice, which torch doesn't have"),
    ],
)
def test_what_can_t_be_given_or_isn_t_there_is_named(
    programs: Path, tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(StageError, match=said):
        taken(tmp_path, programs / name, example={"x": {"shape": [2, 3]}})


@pytest.mark.slow
def test_operators_are_registered_in_every_stage_that_follows(programs: Path, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.write("lib/operators.py", OPERATORS)
    for name in ("Odd.pt", "Odd.pt2"):
        project.write(name, (programs / name).read_bytes())
    project.pipeline(
        """
        script:
          uses: model.program
          trust: true
          inputs: {program: Odd.pt}
          with: {operators: "lib/operators.py:twice", example: {shape: [2, 3]}}
        exported:
          uses: model.program
          trust: true
          inputs: {program: Odd.pt2}
          with: {operators: "lib/operators.py:twice"}
        trace: {uses: torch.trace, inputs: {model: "${{ stages.script.outputs.model }}"}}
        export: {uses: torch.export, inputs: {model: "${{ stages.exported.outputs.model }}"}}
        """
    )
    assert set(project.states().values()) == {"ran"}
    project.write("lib/operators.py", OPERATORS.replace("return x * 2", "return x + x"))
    states = project.states()
    assert states["exported"] == "ran"


class Remembering(nn.Module):
    """Keeps a state from call to call, as detectors of speech do; a batch of another size starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.zeros(0, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.state.shape[0] != x.shape[0]:
            self.state = torch.zeros_like(x)
        self.state = torch.tanh(self.state + x)
        return self.state


def test_a_program_that_keeps_a_state_between_calls_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Remembering()), tmp_path / "vad.pt")
    with pytest.raises(GateError, match="two runs differ: .* or keeps state from one call to the next"):
        taken(tmp_path, tmp_path / "vad.pt", example={"shape": [2, 4]})


class Filling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filled: list[torch.Tensor] = []
        while len(filled) < x.shape[0]:
            filled.append(torch.special.bessel_j1(x))
        return filled[0]


@pytest.mark.slow
def test_a_program_that_no_exporter_takes_is_not_told_to_try_one_of_them(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Filling()), tmp_path / "filling.pt")
    bundle = taken(tmp_path, tmp_path / "filling.pt", example={"shape": [2, 4]})
    with pytest.raises(StageError, match="neither exporter produces a correct file") as error:
        run_stage(stage("onnx.export"), tmp_path / "onnx", inputs={"model": bundle})
    assert "exporter: " not in error.value.fix
