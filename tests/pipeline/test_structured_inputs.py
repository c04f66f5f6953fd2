"""forward() takes dicts, lists and classes of tensors: every conversion builds them out of flat inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from deploy_runner.errors import StageError
from deploy_runner.stages.model.npz import write_arrays
from deploy_runner.testing import StageRun
from tests.conftest import Project
from tests.pipeline.nets import net, prepare, run
from tests.serve.server import serving

INIT = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, {}):
        {}
"""
RECORD = "\n    x: Tensor\n    y: Tensor\n    more: Optional[Tensor] = None\n"
X = {"shape": [2, 4]}
FIELDS, ITEMS = {"batch": {"y": X, "x": X}}, [X, X]

NETS: dict[str, tuple[str, Any]] = {
    "dict": (INIT.format("batch: dict[str, Tensor]", "x, y = batch['x'], batch['y']; {}"), FIELDS),
    "dict without a type": (INIT.format("batch, scale=2", "x, y = batch.x, batch['y']; {}"), FIELDS),
    "list": (INIT.format("xs: list[Tensor]", "y = xs.pop(); x = xs[0]; {}"), {"xs": ITEMS}),
    "tuple by name": (
        INIT.format("*, xs: Optional[tuple[Tensor, ...]] = None", "x, y = () + xs; {}"), {"xs": ITEMS}),
    "NamedTuple": (
        f"class Batch(NamedTuple):{RECORD}{INIT.format('batch: Batch', 'x, y, none = batch; {}')}", FIELDS),
    "dataclass": (
        f"@dataclass(kw_only=True)\nclass Batch:{RECORD}"
        f"{INIT.format('batch: Batch | None = None', 'x, y = batch.x, batch.y; {}')}", FIELDS),
    "own class": (
        "class Batch:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n"
        + INIT.format("batch: Batch", "x, y = batch.x, batch.y; {}"), FIELDS),
    "own mapping": (
        "from collections import UserDict\nclass Encoding(UserDict):\n    pass\n"
        + INIT.format("batch: Encoding", "x, y = batch['x'], batch.data['y']; {}"), FIELDS),
    "star": (INIT.format("*xs", "x, y = xs; {}"), {"xs": ITEMS}),
    "odd keys": (
        INIT.format("batch: dict", "x, y = batch['class'], batch['self']; {}"), {"batch": {"class": X, "self": X}}),
    "odd keys without a type": (
        INIT.format("batch", "x, y = batch['class'], batch['to-go']; {}"), {"batch": {"class": X, "to-go": X}}),
}  # fmt: skip
TRACED = ("torch.trace", "torch.export")
STAGES: dict[str, tuple[str, ...]] = {
    "dict": (*TRACED, "onnx.export", "torch.script"), "list": (*TRACED, "onnx.export", "torch.script"),
    "NamedTuple": (*TRACED, "onnx.export", "torch.script"), "dataclass": (*TRACED, "onnx.export"),
}  # fmt: skip


def source(kind: str) -> str:
    return NETS[kind][0].replace("{}", "return self.a(x) - y * self.b(x)")


def batches(bundle: Path, size: int) -> dict[str, Any]:
    """Return arrays of a number of samples by input, of no case."""
    inputs = json.loads((bundle / "bundle.json").read_text())["inputs"]
    generator = np.random.default_rng(5)
    return {i["name"]: generator.standard_normal((size, *i["shape"][1:])).astype(np.float32) for i in inputs}


def ran(made: StageRun, arrays: dict[str, Any]) -> list[Any]:
    """Return what a converted file answers."""
    file = made["model"]
    if file.is_dir():
        return list(onnxruntime.InferenceSession(file / "model.onnx").run(None, arrays))
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    loaded = torch.export.load(file).module() if file.suffix == ".pt2" else torch.jit.load(str(file))
    found = loaded(*tensors)
    return [found.numpy()] if isinstance(found, torch.Tensor) else [t.numpy() for t in found]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NETS)
def test_every_conversion_gives_forward_what_it_takes(tmp_path: Path, kind: str) -> None:
    bundle = prepare(tmp_path, source(kind), NETS[kind][1])["model"]
    own = net(tmp_path, source(kind))
    for uses in STAGES.get(kind, TRACED):
        made = run(uses, tmp_path, inputs={"model": bundle})
        for size in (3, 7):
            arrays = batches(bundle, size)
            x, y = (torch.from_numpy(array) for array in arrays.values())
            expected = (own.a(x) - y * own.b(x)).detach().numpy()
            assert np.allclose(ran(made, arrays)[0], expected, atol=1e-5), (uses, size)


@pytest.mark.parametrize("kind", ["dict without a type", "NamedTuple"])
def test_the_saved_module_is_called_with_what_it_takes(tmp_path: Path, kind: str) -> None:
    bundle = prepare(tmp_path, source(kind), NETS[kind][1])["model"]
    made = run("torch.save_full", tmp_path, inputs={"model": bundle})
    assert made.figures["max_abs"] == 0
    text = (made["model"] / "load_model.py").read_text()
    module = next(tmp_path.glob("net_*.py")).stem
    said = {"dict without a type": "`model(Fields(x=x, y=y))`.",
            "NamedTuple": f"`model(Batch(x=x, y=y))`, after `from {module} import Batch`."}  # fmt: skip
    assert said[kind] in text


NESTED = (
    "class Tokens(NamedTuple):\n    ids: Tensor\n    mask: Optional[Tensor] = None\n"
    "@dataclass\nclass Sample:\n    left: Tokens\n    right: Tokens\n    maps: dict[int, Tensor]\n"
    "    weights: list[Tensor] = field(default_factory=list)\n"
    """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(30, 4), nn.Linear(4, 3)
    def forward(self, sample: Sample, scale):
        left = (self.e(sample.left.ids) * sample.left.mask[..., None]).sum(1)
        right = self.e(sample.right.ids).mean(1)
        for weight in sample.weights: left = left * weight
        return {"logits": self.o(left - right) * scale[:, None], "parts": [sample.maps[2] * left, right],
                "count": 3, "none": None}
"""
)
IDS = {"shape": [2, 6], "dtype": "int64", "high": 30}
NESTED_EXAMPLE = {
    "scale": {"shape": [2]},
    "sample": {
        "left": {"ids": IDS, "mask": {"shape": [2, 6], "dtype": "int64"}}, "right": {"ids": IDS},
        "maps": {"2": {"shape": [2, 4]}}, "weights": [{"shape": [2, 4]}],
    },
}  # fmt: skip
NESTED_NAMES = ["sample_left_ids", "mask", "sample_right_ids", "maps_2", "weights_0", "scale"]


def test_nested_inputs_are_flat_by_one_rule_and_served(tmp_path: Path) -> None:
    ids = ("sample_left_ids", "mask", "sample_right_ids")
    dynamic = {name: {"0": "batch"} | ({"1": "length"} if name in ids else {}) for name in NESTED_NAMES}
    made = prepare(tmp_path, NESTED, NESTED_EXAMPLE, dynamic=dynamic, expect_shape={"logits": [2, 3]})
    described = json.loads((made["model"] / "bundle.json").read_text())
    assert [port["name"] for port in described["inputs"]] == NESTED_NAMES
    assert [port["name"] for port in described["outputs"]] == ["logits", "parts_0", "parts_1"]
    assert made.figures["left_out"] == {"count": "int"}
    onnx = run("onnx.export", tmp_path, inputs={"model": made["model"]})["model"]
    own = net(tmp_path, NESTED)
    words = np.arange(10).reshape(2, 5)
    flat = {"sample_left_ids": words, "mask": np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]),
            "sample_right_ids": words[::-1], "maps_2": np.full((2, 4), 3.0), "weights_0": np.full((2, 4), 0.5),
            "scale": np.array([2.0, 4.0])}  # fmt: skip
    with serving(onnx, folder=tmp_path / "server") as server:
        answer = server.predict({"inputs": {name: array.tolist() for name, array in flat.items()}}).json
    left = (own.e(torch.tensor(words)) * torch.tensor(flat["mask"])[..., None]).sum(1) * 0.5
    right = own.e(torch.tensor(words[::-1].copy())).mean(1)
    logits = own.o(left - right) * torch.tensor([2.0, 4.0])[:, None]
    assert np.allclose(answer["outputs"]["logits"], logits.detach(), atol=1e-5)
    assert np.allclose(answer["outputs"]["parts_0"], (3 * left).detach(), atol=1e-5)


def test_samples_are_given_by_the_flat_names(tmp_path: Path) -> None:
    samples = {
        n: np.random.default_rng(p).standard_normal((9, 4)).astype(np.float32) for p, n in enumerate("yx")
    }
    write_arrays(tmp_path / "real.npz", samples)
    forward = NETS["NamedTuple"][0].replace("{}", "return self.a(x) - y")
    own = net(tmp_path, forward)
    made = prepare(tmp_path, forward, FIELDS)
    made = run("model.prepare", tmp_path / "real", project=tmp_path, params={
        "factory": next(tmp_path.glob("net_*.py")).name + ":Net", "example": FIELDS, "output_names": ["answer"],
    }, inputs={"weights": tmp_path / "w.safetensors", "samples": tmp_path / "real.npz"})  # fmt: skip
    with np.load(made["model"] / "reference.npz") as arrays:
        case = next(iter(arrays)).split("/")[0]
        assert np.array_equal(arrays[f"{case}/in/x"], samples["x"][:9])
        expected = own.a(torch.from_numpy(samples["x"])).detach().numpy() - samples["y"]
        assert np.allclose(arrays[f"{case}/out/answer"], expected, atol=1e-6)


TWO = "return self.a(batch['x']) * batch['mask']"


@pytest.mark.parametrize(
    ("forward", "example", "said", "fix"),
    [
        (INIT.format("batch", TWO), {"batch": {"x": X}}, "KeyError 'mask' at", "add `example.batch.mask`"),
        (INIT.format("batch", "return self.a(batch.x) * batch.mask"), {"batch": {"x": X}}, "no 'mask'",
         "add `example.batch.mask`"),
        (INIT.format("batch", "return self.a(batch['image']['x']) * batch['mask']"), {"batch": {"image": {"x": X}}},
         "KeyError 'mask'", "add `example.batch.mask` or `example.batch.image.mask`"),
        (INIT.format("batch: dict[str, Tensor]", TWO), X, "fails on the example batch",
         "forward() takes batch as dict[str, torch.Tensor]: write `example: {batch: {NAME: {shape: […]}}}`"),
        (INIT.format("batch", TWO), X, "fails on the example batch", "nest the examples"),
        (INIT.format("batch", "return self.a(batch.x)"), X, "no attribute 'x'",
         "write `example: {batch: {x: {shape: […]}}}`"),
        (INIT.format("xs: list[Tensor]", "return self.a(xs[5])"), {"xs": {"shape": [1, 4]}}, "out of bounds",
         "write `example: {xs: [{shape: […]}]}`"),
        (INIT.format("batch", TWO), {"x": X, "mask": X}, "no argument 'x', it has batch",
         "write `example: {batch: {x: …}}`"),
        (INIT.format("x: Tensor", "return self.a(x)"), {"x": {"x": X}}, "must be Tensor, not Fields",
         "forward() takes x as torch.Tensor: write `example: {x: {shape: […]}}`"),
        (f"class B(NamedTuple):\n    x: Tensor\n    mask: Tensor\n{INIT.format('b: B', 'return self.a(b.x)')}",
         {"b": {"x": X}}, "takes b as B, which requires 'mask', which has no example", "add `example.b.mask`"),
        (f"class B(TypedDict):\n    x: Tensor\n    mask: Tensor\n{INIT.format('b: B', 'return self.a(b.x)')}",
         {"b": {"x": X}}, "requires 'mask', which has no example", "add `example.b.mask`"),
        (f"@dataclass\nclass B:{RECORD}{INIT.format('b: B', 'return self.a(b.x)')}",
         {"b": {"x": X, "y": X, "mor": X}}, "takes b as B, which has no 'mor', only x, y, more", "'more'"),
        (INIT.format("left, right", "return self.a(left['c']['x'])"),
         {"left": {"c": {"x": X}}, "right": {"c": {"x": X}, "right_c_x": X}},
         "right.c.x and right.right_c_x would both be called 'right_c_x'", "rename"),
        (INIT.format("batch: Local", "return self.a(batch[0])"), {"batch": {"x": X}}, "KeyError 0",
         "define Local, of which forward() takes batch, at the top level of its file"),
        (INIT.format("b", "return torch.cat([self.a(v) for v in b.values()], 1)"), {"b": {"y": X, "x": X}},
         "depends on the order of the keys of b, which are taken sorted", "write them sorted"),
        (INIT.format("left, right", "return self.a(left)"), {"lift": X, "right": X}, "no argument 'lift'", "'left'"),
    ],
)  # fmt: skip
def test_what_forward_takes_is_said(tmp_path: Path, forward: str, example: Any, said: str, fix: str) -> None:
    with pytest.raises(StageError, match=said) as caught:
        prepare(tmp_path, forward, example)
    assert fix in caught.value.fix
    assert "\n" not in str(caught.value)


def test_another_order_of_keys_that_only_turns_the_outputs_is_taken(tmp_path: Path) -> None:
    forward = INIT.format("b", "return {name: self.a(v) for name, v in b.items()}")
    bundle = prepare(tmp_path, forward, {"b": {"y": X, "x": X}})["model"]
    assert [port["name"] for port in json.loads((bundle / "bundle.json").read_text())["outputs"]] == [
        "x",
        "y",
    ]
    with pytest.raises(StageError, match="depends on the order of the keys of b"):
        prepare(tmp_path, forward, {"b": {"y": X, "x": X}}, output_names=["of_y", "of_x"])


def test_keys_in_their_sorted_order_are_taken_at_the_user_s_word(tmp_path: Path) -> None:
    forward = INIT.format("b", "return torch.cat([self.a(v) for v in b.values()], 1)")
    assert prepare(tmp_path, forward, {"b": {"x": X, "y": X}})["model"].is_dir()


def test_a_script_that_cannot_be_says_of_which_type_the_argument_should_be(tmp_path: Path) -> None:
    bundle = prepare(tmp_path, source("dataclass"), FIELDS)["model"]
    with pytest.raises(StageError, match="forward\\(\\) takes batch made of several tensors") as caught:
        run("torch.script", tmp_path, inputs={"model": bundle})
    assert "annotate it as dict[str, torch.Tensor]" in caught.value.fix


@pytest.mark.parametrize("annotation", ["", ": Batch"], ids=["dict", "class"])
def test_training_resumes_with_the_parts_of_the_only_argument(tmp_path: Path, annotation: str) -> None:
    forward = "class Batch(NamedTuple):\n    x: Tensor\n    gain: Tensor\n" + INIT.format(
        f"batch{annotation}", "return self.a(batch.x) * batch.gain")  # fmt: skip
    own = net(tmp_path, forward).train()
    data = {
        name: np.random.default_rng(n).standard_normal((64, 4)).astype(np.float32)
        for n, name in enumerate("xy")
    }
    write_arrays(tmp_path / "data.npz", data | {"gain": np.full((64, 4), 2, np.float32)})
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(
            own.a(torch.from_numpy(data["x"])) * 2, torch.from_numpy(data["y"])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    content = {"model_state_dict": own.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(content, tmp_path / "run.pt")
    made = run("checkpoint.resume_check", tmp_path, project=tmp_path, params={
        "factory": next(tmp_path.glob("net_*.py")).name + ":Net", "optimizer": "Adam", "loss": "mse_loss", "steps": 2,
    }, inputs={"checkpoint": tmp_path / "run.pt", "data": tmp_path / "data.npz"})  # fmt: skip
    assert made.figures["first_loss"] < made.figures["untrained_loss"]


STAGE = """
{name}:
  uses: model.prepare
  inputs: {{weights: w.safetensors}}
  with:
    factory: {file}:Net
    example: {example}
"""


def test_a_pipeline_nests_the_example_and_keeps_the_keys_order_from_ruining_it(tmp_path: Path) -> None:
    forward = INIT.format("b, scale", "return torch.cat([self.a(v) for v in b.values()], 1) * scale")
    weights = {name: tensor.contiguous() for name, tensor in net(tmp_path, forward).state_dict().items()}
    project = Project(tmp_path)
    save_file(weights, tmp_path / "w.safetensors")
    file = next(tmp_path.glob("net_*.py")).name
    examples = {"sorted": "{scale: {shape: [2, 8]}, b: {x: {shape: [2, 4]}, y: {shape: [2, 4]}}}",
                "turned": "{scale: {shape: [2, 8]}, b: {y: {shape: [2, 4]}, x: {shape: [2, 4]}}, }"}  # fmt: skip
    project.pipeline(STAGE.format(name="sorted", file=file, example=examples["sorted"]))
    assert project.states() == {"sorted": "ran"}
    assert project.states() == {"sorted": "hit"}
    project.pipeline(STAGE.format(name="turned", file=file, example=examples["turned"]))
    other = Project(tmp_path).cli("run", exits=1, DEPLOY_RUNNER_HOME=str(tmp_path / "other"))
    assert "depends on the order of the keys of b, which are taken sorted" in other.stdout + other.stderr


WRONG = [
    ("{b: {x: {shap: [2]}}}", "shap", "has no 'example.b.x.shap' (did you mean 'shape'?)"),
    ("{b: [{shape: [2], dtype: int65}]}", "int65", "'example.b.0.dtype' must be 'float32'"),
    ("{b: {x: {shape: [2]}, y: 3}}", "3", "'example.b.y' must be a mapping or a list, not 3"),
    ("{shape: [2], dtyp: int64}", "dtyp", "has no 'example.dtyp' (did you mean 'dtype'?)"),
    ("[{shape: [2]}]", "[{", "'example' must be a mapping, not a list"),
]


def test_each_error_in_a_nested_example_names_its_place(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("net.py", "def Net(): pass\n")
    project.write("w.safetensors", "")
    examples = dict.fromkeys(example for example, _, _ in WRONG)
    stages = [
        STAGE.format(name=f"wrong{n}", file="net.py", example=given) for n, given in enumerate(examples)
    ]
    project.pipeline("".join(stages))
    lines = (tmp_path / "pipeline.yaml").read_text().splitlines()
    said = project.cli("plan", exits=2).stderr.splitlines()[1:]
    for (example, marked, text), line in zip(WRONG, said, strict=True):
        row = next(n for n, written in enumerate(lines) if example in written)
        column = lines[row].index(example) + example.index(marked) + 1
        assert line.startswith(f"pipeline.yaml:{row + 1}:{column}: ")
        assert text in line
