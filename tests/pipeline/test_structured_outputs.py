"""forward() returns dicts, lists and classes: each tensor has a name, and what is none is not lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.errors import StageError
from tests.pipeline.nets import net, prepare, run

HEAD = """
class Pair(NamedTuple):
    logits: Tensor
    state: Optional[tuple[Tensor, ...]] = None
@dataclass
class Out:
    logits: Tensor
    hidden: list[Tensor]
    loss: Optional[Tensor] = None
class Cache:
    def __init__(self, key): self.key = key
"""
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
    def forward(self, x):
        y = self.a(x)
        return {}
"""
RESULTS: dict[str, tuple[str, list[str], dict[str, str] | None]] = {
    "NamedTuple": ("Pair(y, (y + 1, y + 2))", ["logits", "state_0", "state_1"], None),
    "dataclass": ("Out(y, [y + 1, y + 2])", ["logits", "hidden_0", "hidden_1"], None),
    "dict of dicts": ("{'a': {'x': y}, 'b': {'x': y + 1}, 'c': [y + 2]}", ["a_x", "b_x", "c_0"], None),
    "list of dicts": ("[{'box': y}, {'box': y + 1}, {'label': y + 2}]", ["output_0_box", "output_1_box", "label"], None),
    "numbers for keys": ("{3: y, 5: y + 1, 'x': y + 2}", ["output_3", "output_5", "x"], None),
    "tuple": ("y, (y + 1, y + 2)", ["output_0", "output_1", "output_2"], None),
    "tuple with a dict": ("y, {'aux': y + 1, 'more': y + 2}", ["output_0", "aux", "more"], None),
    "nothing between": ("y, None, [y + 1, y + 2]", ["output_0", "output_1", "output_2"], None),
    "others between": (
        "{'a': y, 'rows': x.shape[0], 'b': Pair(y + 1), 'cache': Cache(y), 'name': 'n', 'c': y + 2}",
        ["a", "logits", "c"], {"rows": "int", "cache": "Cache", "name": "str"}),
    "sizes": ("y, y.shape, y + 1, y + 2", ["output_0", "output_1", "output_2"], {"[1][0]": "int", "[1][1]": "int"}),
}  # fmt: skip


def ran(file: Path, x: torch.Tensor) -> list[Any]:
    loaded = torch.export.load(file).module() if file.suffix == ".pt2" else torch.jit.load(str(file))
    return [
        leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(loaded(x)) if isinstance(leaf, torch.Tensor)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", RESULTS)
def test_every_tensor_of_a_result_is_an_output_with_a_name(tmp_path: Path, kind: str) -> None:
    result, names, left_out = RESULTS[kind]
    source = HEAD + NET.replace("{}", result)
    made = prepare(tmp_path, source, {"shape": [2, 4]})
    described = json.loads((made["model"] / "bundle.json").read_text())
    assert [port["name"] for port in described["outputs"]] == names
    assert made.figures.get("left_out") == left_out
    x = torch.randn(7, 4)
    y = net(tmp_path, source).a(x).detach().numpy()
    for uses in ("torch.trace", "torch.export"):
        found = ran(run(uses, tmp_path, inputs={"model": made["model"]})["model"], x)
        assert len(found) == 3
        assert all(np.allclose(array, y + n, atol=1e-6) for n, array in enumerate(found)), uses


def test_a_full_module_and_onnx_have_them_too(tmp_path: Path) -> None:
    source = HEAD + NET.replace("{}", RESULTS["others between"][0])
    bundle = prepare(tmp_path, source, {"shape": [2, 4]})["model"]
    for uses in ("torch.save_full", "onnx.export"):
        assert run(uses, tmp_path, inputs={"model": bundle}).figures["cosine"] > 0.9999


def test_an_output_that_comes_and_goes_with_the_size_is_said(tmp_path: Path) -> None:
    source = HEAD + NET.replace("{}", "{'y': y, 'aux': y if len(x) == 2 else None}")
    with pytest.raises(StageError, match=r"the model returns 1 tensor for .*, and 2 for other inputs"):
        prepare(tmp_path, source, {"shape": [2, 4]})


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    source = HEAD + NET.replace("{}", "{'a': {'b': y}, 'a_b': y, 'c': {'b': y}}")
    with pytest.raises(StageError, match=r"a\.b and a_b would both be called 'a_b'") as caught:
        prepare(tmp_path, source, {"shape": [2, 4]})
    assert caught.value.fix == "set `output_names`"
    prepare(tmp_path, source, {"shape": [2, 4]}, output_names=["p", "q", "r"])


@pytest.mark.filterwarnings("ignore")
def test_an_operator_whose_line_torch_export_can_t_tell_is_named_all_the_same(tmp_path: Path) -> None:
    source = NET.replace(
        "return {}", "y = torch.linalg.svdvals(y)\n        return y if y.sum() > 2 else y * 2"
    )
    bundle = prepare(tmp_path, source, {"shape": [2, 4]}, dynamic={})["model"]
    with pytest.raises(StageError, match="the operator aten::linalg_svdvals has no ONNX equivalent"):
        run("onnx.export", tmp_path, inputs={"model": bundle}, params={"exporter": "torchscript"})
