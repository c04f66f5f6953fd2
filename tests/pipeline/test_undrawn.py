"""A bundle's module is built without drawing initial weights, as those of its file replace them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.registry import Registry
from deploy_runner.stages.model.bundles import load_bundle
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import ROOT

PLAIN = "pass"
DRAWN_BUFFER = "self.register_buffer('noise', torch.rand(128), persistent=False)"
DRAWN_NUMBER = "self.shift = float(torch.randint(2, 100, ()))"
LIBRARYS_OWN = """theirs = nn.init.normal_
        def normal_(tensor, *args, **kwargs): return theirs(tensor, *args, **kwargs)
        nn.init.normal_ = normal_
        nn.init.normal_(self.a.weight)
        nn.init.normal_ = theirs"""
OF_WEIGHTS = "assert torch.isfinite(self.a.weight).all() and self.a.weight.std() > 0.01"


def run(uses: str, folder: Path, **given: Any) -> StageRun:
    found = Registry(ROOT / "tests").get(uses)
    assert found is not None
    return run_stage(found.cls, folder / uses, **given)


def prepare(folder: Path, more: str, width: int = 128) -> Path:
    (folder / "net.py").write_text(f"""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise, self.shift = torch.zeros(()), 1.0
        self.a, self.b = nn.Linear({width}, {width}, bias=False), nn.LayerNorm({width})
        del self.noise
        self.register_buffer('noise', torch.zeros(()), persistent=False)
        {more}

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) * self.shift + self.noise

def build():
    torch.manual_seed(5)
    return Net()
""")
    namespace: dict[str, Any] = {}
    exec((folder / "net.py").read_text(), namespace)
    trained = {name: tensor + 0.25 for name, tensor in namespace["build"]().state_dict().items()}
    torch.save(trained, folder / "c.pt")
    weights = run("checkpoint.state_dict", folder, inputs={"checkpoint": folder / "c.pt"})["weights"]
    params = {"factory": "net.py:build", "example": {"shape": [2, width]}}
    made: Path = run("model.prepare", folder, project=folder, inputs={"weights": weights}, params=params)[
        "model"
    ]
    return made


@pytest.mark.parametrize(
    ("more", "drawn"),
    [(PLAIN, False), (LIBRARYS_OWN, False), (DRAWN_BUFFER, True), (DRAWN_NUMBER, True), (OF_WEIGHTS, None)],
    ids=[
        "plain",
        "a library that replaces torch's functions",
        "a buffer that is not saved",
        "a number",
        "a factory that looks at its weights",
    ],
)
def test_weights_are_drawn_only_where_something_beside_them_depends_on_it(
    tmp_path: Path, more: str, drawn: bool | None
) -> None:
    bundle = load_bundle(prepare(tmp_path, more))
    torch.manual_seed(5)
    seeded = torch.get_rng_state()
    module = bundle.own_module()
    if drawn is not None:
        assert torch.equal(torch.get_rng_state(), seeded) != drawn
    for case in bundle.cases:
        with torch.no_grad():
            outputs = module(torch.from_numpy(case.inputs["x"])).numpy()
        np.testing.assert_array_equal(outputs, case.outputs["output"])


def test_a_bundle_of_an_older_version_is_built_as_it_was(tmp_path: Path) -> None:
    made = prepare(tmp_path, PLAIN)
    described = json.loads((made / "bundle.json").read_text())
    assert described.pop("unsaved")
    (made / "bundle.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    bundle = load_bundle(made)
    bundle.own_module()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    assert not torch.equal(after, torch.get_rng_state())


def test_of_many_outputs_the_rounding_is_measured_once_for_all_batches(tmp_path: Path) -> None:
    for width, once in ((256, True), (32, False)):
        (folder := tmp_path / str(width)).mkdir()
        described = json.loads((prepare(folder, PLAIN, width) / "bundle.json").read_text())
        rows = [found["output"] for found in described["precision"].values()]
        assert len(rows) == 3
        assert all(0 < row["own_error"] < row["allowed"] for row in rows)
        shares = [row["own_error"] / row["scale"] for row in rows]
        assert (max(shares) - min(shares) < 1e-3 * max(shares)) == once
