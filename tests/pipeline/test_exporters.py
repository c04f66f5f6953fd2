"""onnx.export by whichever of torch's exporters produces a correct file, under the names that the user gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deploy_runner.testing import run_stage
from tests.bundles import bundle, stage
from tests.conftest import Project

MODELS = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)

class Softplus(Net):
    """torch's older exporter leaves beta and threshold out of Softplus."""
    def forward(self, x): return nn.functional.softplus(self.l(x), 2.0, 1.0)

class Hermitian(Net):
    """Neither exporter has an operator for it."""
    def forward(self, x): return torch.linalg.inv(self.l(x)[:, :, None] * torch.eye(4))

class Flat(Net):
    """Attention without heads: the newer exporter wants four axes."""
    def forward(self, x):
        y = self.l(x)[:, None, :]
        return nn.functional.scaled_dot_product_attention(y, y, y)

class Passed(Net):
    """An output is an input, two outputs are one tensor."""
    def forward(self, x):
        y = self.l(x)
        return {"same": x, "one": y, "other": y}

class Branch(Net):
    """The names of the outputs are those of values inside both branches."""
    def forward(self, x):
        def up(x): return torch.relu(x) + 1.0
        def down(x): return torch.tanh(x) * 2.0
        y = torch.cond(x.sum() > 0, up, down, (self.l(x),))
        return {"relu": y, "tanh": y * 2, "add": y + x, "val_0": x - y}

class Odd(Net):
    def forward(self, linear_input): return {"größe/1.x y": self.l(linear_input), "l.weight": linear_input * 2}

class Inplace(Net):
    def forward(self, relu): return {"x": torch.relu(self.l(relu)), "linear": relu + 1}

def build(name): return globals()[name]()
'''


def brought(project: Project, name: str, **options: Any) -> torch.nn.Module:
    """Write the project of one of MODELS; return it as plain torch has it."""
    project.write("model.py", MODELS)
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    torch.manual_seed(0)
    module: torch.nn.Module = scope[name]().eval()
    torch.save(module.state_dict(), project.folder / "ck.pt")
    given = ", ".join(f"{key}: {value}" for key, value in options.items())
    project.pipeline(f"""
        weights: {{uses: checkpoint.state_dict, inputs: {{checkpoint: ck.pt}}}}
        model:
          uses: model.prepare
          inputs: {{weights: "${{{{ stages.weights.outputs.weights }}}}"}}
          with: {{factory: "model.py:build", kwargs: {{name: {name}}}, example: {{shape: [2, 4]}}}}
        onnx:
          uses: onnx.export
          inputs: {{model: "${{{{ stages.model.outputs.model }}}}"}}
          with: {{{given}}}
        """)
    return module


def answers(
    project: Project, stage: str = "onnx"
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], torch.Tensor]:
    """Fetch the file and run it by onnxruntime alone, at a batch that the pipeline never saw."""
    place = project.folder / "made" / stage
    project.cli("get", f"{stage}.model", "--to", str(place))
    session = onnxruntime.InferenceSession(place / "model.onnx")
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))
    (name,) = (given.name for given in session.get_inputs())
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {name: x.numpy()}), strict=True))
    return onnx.load(place / "model.onnx"), found, x


def test_where_the_file_of_one_exporter_is_wrong_the_other_is_tried_and_that_is_said(
    project: Project,
) -> None:
    module = brought(project, "Softplus", opset=17)
    figures = project.run()["stages"]["onnx"]["figures"]
    assert figures["exporter"] == "dynamo"
    assert figures["refused"].startswith("torchscript: the result differs from the original by up to")
    model, found, x = answers(project)
    assert model.opset_import[0].version == 17
    np.testing.assert_allclose(found["output"], module(x).detach(), atol=1e-6)


def test_an_exporter_that_was_named_is_the_only_one_and_the_other_is_advised(project: Project) -> None:
    brought(project, "Softplus", exporter="torchscript")
    error = project.run(exits=1)["stages"]["onnx"]["error"]
    assert "differs from the original" in error
    assert "exporter: dynamo" in error


@pytest.mark.slow
def test_where_both_refuse_each_says_why_and_neither_is_advised(project: Project) -> None:
    brought(project, "Hermitian")
    error = project.run(exits=1)["stages"]["onnx"]["error"]
    assert "linalg" in error
    assert "exporter: " not in error
    assert "other exporter" not in error


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "name", ["Odd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Passed", "Inplace"))]
)
def test_names_are_the_users_whatever_the_graph_calls_its_own(
    project: Project, name: str, exporter: str
) -> None:
    module = brought(project, name, exporter=exporter)
    project.run()
    _, found, x = answers(project)
    expected = module(x)
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        np.testing.assert_allclose(found[key], tensor.detach(), atol=1e-6)


@pytest.mark.slow
def test_names_are_the_users_in_the_branches_of_a_graph_too(project: Project) -> None:
    module = brought(project, "Branch", exporter="dynamo")
    project.run()
    _, found, x = answers(project)
    for given in (x, -x):
        assert list(module(given)) == list(found)
    for key, tensor in module(x).items():
        np.testing.assert_allclose(found[key], tensor.detach(), atol=1e-6)


def test_an_export_says_what_it_is_doing(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    made = run_stage(
        stage("onnx.export"), tmp_path / "o", inputs={"model": bundle(tmp_path, "mlp")["model"]},
        _progress=lambda fraction, message: told.append((fraction, message)),
    )  # fmt: skip
    cases = made.figures["cases"]
    assert [message for _, message in told] == [
        "running the model on its reference cases",
        "exporting with dynamo",
        *(f"comparing what dynamo made: case {n} of {len(cases)}, {name}" for n, name in enumerate(cases, 1)),
    ]
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] < 1


def test_the_cause_is_said_and_all_that_led_to_it_is_in_the_log(project: Project) -> None:
    brought(project, "Flat", exporter="dynamo")
    error = project.run(exits=1)["stages"]["onnx"]["error"]
    assert "the dynamo exporter failed: only 4D query, key, and value are supported (" in error
    (log,) = (project.folder / ".deploy-runner/runs").glob("*/log.jsonl")
    lines = log.read_text()
    for part in (
        "ConversionError: Failed to convert the exported program",
        "GraphConstructionError: Error when",
        "AssertionError: only 4D",
    ):
        assert part in lines


def test_an_axis_that_the_model_fixes_is_named_with_the_line_to_change(project: Project) -> None:
    """The newer exporter takes the sizes that affine_grid is given for constants."""
    grid = "F.affine_grid(torch.eye(2, 3).expand(x.size(0), 2, 3), x.size(), align_corners=False)"
    forward = f"F.grid_sample(super().forward(x), {grid}, align_corners=False)"
    of_pictures(project, [2, 3, 37, 41], "nn.Conv2d(3, 3, 1)", forward=forward, exporter="dynamo")
    error = project.run(exits=1)["stages"]["onnx"]["error"]
    assert "tracing inferred a static shape of 37 for dimension inputs['x'].shape[2]." in error
    assert (
        "if forward() fixes the size of axis 2 of 'x' and axis 3 of 'x', leave it out of `dynamic`" in error
    )


def test_sizes_far_from_those_of_the_cases_are_compared_too(project: Project) -> None:
    """Both exporters take what is done with small pictures for what is done with all."""
    forward = "super().forward(x if x.shape[2] < 120 else x[:, :, ::2])"
    of_pictures(project, [2, 3, 64, 64], "nn.Conv2d(3, 4, 3)", forward=forward, exporter="dynamo")
    error = project.run(exits=1)["stages"]["onnx"]["error"]
    assert (
        "the dynamo exporter wrote down sizes of the reference cases: at batch 2, height 133, width 133"
        in error
    )
    assert "set the `max` of the axis in `dynamic`" in error


def test_pictures_of_any_size_are_pooled_to_one(project: Project) -> None:
    """Alone, the newer exporter writes down the example's windows, and the older one refuses."""
    module = of_pictures(project, [2, 3, 40, 56], "nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d((6, None))")
    figures = project.run()["stages"]["onnx"]["figures"]
    assert figures["exporter"] == "dynamo"
    project.cli("get", "onnx.model", "--to", "made")
    session = onnxruntime.InferenceSession(project.folder / "made/model.onnx")
    for height, width in ((16, 8), (33, 70), (104, 48), (200, 168)):
        x = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(height))
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, module(x).detach(), atol=1e-6)


def of_pictures(
    project: Project, shape: list[int], net: str, *, forward: str = "super().forward(x)", **options: Any
) -> torch.nn.Module:
    """Write the project of a net that takes pictures of any size; return the net."""
    text = f"""
import torch
import torch.nn.functional as F
from torch import nn
class Net(nn.Sequential):
    def forward(self, x): return {forward}
def build(): return Net({net})
"""
    project.write("model.py", text)
    scope: dict[str, Any] = {}
    exec(text, scope)
    torch.manual_seed(0)
    module: torch.nn.Module = scope["build"]().eval()
    torch.save(module.state_dict(), project.folder / "ck.pt")
    given = ", ".join(f"{key}: {value}" for key, value in options.items())
    project.pipeline(f"""
        weights: {{uses: checkpoint.state_dict, inputs: {{checkpoint: ck.pt}}}}
        model:
          uses: model.prepare
          inputs: {{weights: "${{{{ stages.weights.outputs.weights }}}}"}}
          with:
            factory: "model.py:build"
            example: {{shape: {shape}}}
            dynamic: {{x: {{0: batch, 2: height, 3: width}}}}
        onnx:
          uses: onnx.export
          inputs: {{model: "${{{{ stages.model.outputs.model }}}}"}}
          with: {{{given}}}
        """)
    return module
