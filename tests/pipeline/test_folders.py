"""A model's folder and file may have any name: every conversion loads them by their path."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Project

MODEL = """
import torch
from torch import nn
{imports}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(WIDTH, 4)

    def forward(self, x):
        return torch.relu(self.l(x)) + 1.0

def build(): return Net()
"""

CONVERSIONS = {
    "trace": "torch.trace",
    "script": "torch.script",
    "pt2": "torch.export",
    "full": "torch.save_full",
    "tdyn8": "torch.quantize_dynamic",
    "lite": "mobile.lite",
    "dynamo": "onnx.export, with: {exporter: dynamo}",
    "legacy": "onnx.export, with: {exporter: torchscript}",
}


@pytest.mark.parametrize(
    ("place", "imports"),
    [
        pytest.param("2024/model.py", "from widths import WIDTH", id="year", marks=pytest.mark.slow),
        pytest.param("v1.2/net.v3.py", "WIDTH = 4", id="dots", marks=pytest.mark.slow),
        pytest.param(
            "my-model/src/my-net.py",
            "from .widths import WIDTH",
            id="dashes, relative import",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "größe 2/das modell.py",
            "from widths import WIDTH",
            id="spaces and umlauts",
            marks=pytest.mark.slow,
        ),
        pytest.param("torch/nn/model.py", "WIDTH = 4", id="named like torch", marks=pytest.mark.slow),
        pytest.param(
            "json/class.py",
            "from widths import WIDTH",
            id="named like the standard library",
            marks=pytest.mark.slow,
        ),
        pytest.param("1/2/3.py", "WIDTH = 4", id="numbers alone", marks=pytest.mark.slow),
    ],
)
def test_every_conversion_takes_a_model_from(project: Project, place: str, imports: str) -> None:
    source = MODEL.format(imports=imports)
    path = project.write(place, source)
    path.with_name("widths.py").write_text("WIDTH = 4\n")
    if imports.startswith("from ."):
        path.with_name("__init__.py").write_text("")
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    torch.save({f"l.{name}": value for name, value in layer.state_dict().items()}, project.folder / "ck.pt")
    lines = [
        f'{stage}: {{uses: {uses}, inputs: {{model: "${{{{ stages.model.outputs.model }}}}"}}}}'
        for stage, uses in CONVERSIONS.items()
    ]
    project.pipeline(
        "weights: {uses: checkpoint.state_dict, inputs: {checkpoint: ck.pt}}\n"
        'model: {uses: model.prepare, inputs: {weights: "${{ stages.weights.outputs.weights }}"}, '
        f'with: {{factory: "{place}:build", example: {{shape: [2, 4]}}}}}}\n' + "\n".join(lines)
    )
    assert set(project.states().values()) == {"ran"}
