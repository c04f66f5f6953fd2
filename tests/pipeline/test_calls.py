"""forward() is called alike everywhere, whatever its signature: each value is far off where it isn't."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deploy_runner.errors import StageError
from deploy_runner.registry import Registry
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import ROOT

HEAD = """
import functools
import torch
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
"""

SIGNATURES = {
    "skipped": """
    def forward(self, x, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None):
        y = self.linear(x)
        if scale is not None: y = y * scale
        if shift is not None: y = y - shift
        return y
""",
    "keyword-only": """
    def forward(self, x, *, factor: float = 1.0, shift: torch.Tensor):
        return self.linear(x) * factor - shift
""",
    "positional-only": """
    def forward(self, x, shift, /):
        return self.linear(x) - shift
""",
    "star": """
    def forward(self, *given):
        return self.linear(given[0]) - given[1]
""",
    "kwargs": """
    def forward(self, x, **others):
        return self.linear(x) - others["shift"]
""",
    "decorated": """
    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)

    def inner(self, x, mask=None, shift=None):
        return self.linear(x) - shift if mask is None else self.linear(x) * mask
""",
    "another order": """
    def forward(self, shift, other=2, x=None):
        return self.linear(x) - shift * other
""",
}
SCRIPTED = {
    "untyped": SIGNATURES["skipped"].replace(": torch.Tensor | None", ""),
    "untyped, by name": """
    def forward(self, x, mask=None, *, scale=None, shift=None):
        if mask is not None: x = x * mask
        y = functional.linear(x, self.linear.weight, self.linear.bias)
        return y * scale if scale is not None else y - shift
""",
    "untyped, behind a number": """
    def forward(self, x, times: int = 1, shift=None, mask=None):
        y = self.linear(x) * times - shift
        return y if mask is None else y * mask
""",
}
NAMES = {"star": ("a", "b")}
STAGES = ("torch.trace", "torch.export", "torch.save_full", "torch.quantize_dynamic", "onnx.export",
          "mobile.lite")  # fmt: skip


def run(uses: str, folder: Path, **given: Any) -> StageRun:
    found = Registry(ROOT / "tests").get(uses)
    assert found is not None
    return run_stage(found.cls, folder / uses, **given)


def prepare(folder: Path, forward: str, example: Any, **params: Any) -> StageRun:
    file = folder / f"model_{zlib.crc32(forward.encode())}.py"  # TorchScript keeps sources by their names.
    file.write_text(HEAD + forward)
    torch.manual_seed(0)
    save_file(
        {f"linear.{k}": v for k, v in torch.nn.Linear(4, 4).state_dict().items()}, folder / "w.safetensors"
    )
    return run("model.prepare", folder, project=folder, inputs={"weights": folder / "w.safetensors"},
               params={"factory": f"{file.name}:Net", "example": example} | params)  # fmt: skip


def example(*names: str) -> dict[str, Any]:
    return {name: {"shape": [2, 4]} for name in names}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if place % 2 else ())
        for place, kind in enumerate(SIGNATURES)
    ],
)
def test_every_conversion_calls_forward_as_the_reference_does(tmp_path: Path, kind: str) -> None:
    names = NAMES.get(kind, ("x", "shift"))
    bundle = prepare(tmp_path, SIGNATURES[kind], example(*names))["model"]
    with np.load(bundle / "reference.npz") as arrays:
        case = next(iter(arrays)).split("/")[0]
        x, shift, found = (
            arrays[f"{case}/{key}"] for key in (f"in/{names[0]}", f"in/{names[1]}", "out/output")
        )
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4)
    expected = linear(torch.from_numpy(x)).detach().numpy() - shift * (2 if kind == "another order" else 1)
    assert np.allclose(found, expected, atol=1e-6)
    for uses in STAGES:
        assert run(uses, tmp_path, inputs={"model": bundle}).figures["cosine"] > 0.999, uses
    opset = run("onnx.export", tmp_path / "old", inputs={"model": bundle}, params={"exporter": "torchscript"})
    assert opset.figures["cosine"] > 0.999
    traced = torch.jit.load(str(tmp_path / "torch.trace/outputs/model.pt"))
    assert sorted(traced.state_dict()) == ["linear.bias", "linear.weight"]


@pytest.mark.parametrize(
    "kind", ["skipped", "keyword-only", "untyped", "untyped, by name", "untyped, behind a number"]
)
def test_a_script_calls_forward_as_the_reference_does(tmp_path: Path, kind: str) -> None:
    forward = SCRIPTED.get(kind) or SIGNATURES[kind].replace("factor: float = 1.0, ", "").replace(
        " * factor", ""
    )
    bundle = prepare(tmp_path, forward, example("x", "shift"))["model"]
    assert run("torch.script", tmp_path, inputs={"model": bundle}).figures["max_abs"] == 0


def test_the_saved_module_says_how_it_is_called(tmp_path: Path) -> None:
    bundle = prepare(tmp_path, SIGNATURES["skipped"], example("x", "shift"))["model"]
    folder = run("torch.save_full", tmp_path, inputs={"model": bundle})["model"]
    assert "`model(x, shift=shift)`" in (folder / "load_model.py").read_text()
    code = "import torch, load_model; m = load_model.load(); print(m(torch.ones(1, 4), shift=torch.ones(4)).shape, *m.state_dict())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert said == "torch.Size([1, 4]) linear.weight linear.bias\n"


@pytest.mark.parametrize(
    ("forward", "names", "said", "fix"),
    [
        ("    def forward(self, x, mask): return x", ("x",), "requires the argument 'mask', which has no example",
         "add `example.mask`"),
        ("    def forward(self, x, mask): return x", ("x", "mesk"), "has no argument 'mesk', it has x, mask", "did you mean 'mask'?"),
        ("    def forward(self, x=None, y=None, /): return y", ("y",), "takes 'y' by position only, after 'x'", "add `example.x`"),
        ("    def forward(self, *, x): return x", (), "requires the argument 'x'", "add `example.x`"),
        ("    def forward(self, *given): return given[0]", ("left", "after"), "by position only, and the names don't", "input_0"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_made_is_refused_by_name(
    tmp_path: Path, forward: str, names: tuple[str, ...], said: str, fix: str
) -> None:
    with pytest.raises(StageError, match=said) as caught:
        prepare(tmp_path, forward, example(*names))
    assert fix in caught.value.fix
