"""`model.program`: TorchScript and exported programs of others as the model that everything starts from."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from deploy_runner.errors import GateError, StageError
from deploy_runner.stages.model import symbols
from deploy_runner.stages.model.axes import Axis
from deploy_runner.stages.model.bundles import load_bundle
from deploy_runner.stages.model.exported import Declared
from deploy_runner.testing import StageRun, run_stage
from tests.bundles import stage

pytestmark = pytest.mark.filterwarnings("ignore")


class Turns(nn.Module):
    """Its control flow hangs on the data, which a trace can't record."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x):  # type: ignore[no-untyped-def]
        if bool(x.sum() > 0):
            return self.last(x)
        return -self.last(x)


class Pictures(nn.Module):
    """Halves pictures three times and enlarges them again: its sizes go in steps of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, picture):  # type: ignore[no-untyped-def]
        return nn.functional.interpolate(self.conv(picture), scale_factor=8.0) + picture[:, :1]


class Nested(nn.Module):
    """Takes a mapping, a keyword, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, batch, flag=None, *, scale, mode="twice", times=2):  # type: ignore[no-untyped-def]
        mask = batch["attention_mask"].float().mean(1, keepdim=True)
        return {"scores": self.last(batch["x"]) * scale * times * mask}


def seeded(module: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return module().eval()


def scripted(folder: Path, module: Callable[[], nn.Module] = Turns) -> Path:
    torch.jit.save(torch.jit.script(seeded(module)), folder / "program.pt")
    return folder / "program.pt"


def exported(path: Path, module: nn.Module, args: Any, kwargs: Any = None, shapes: Any = None) -> Path:
    torch.export.save(torch.export.export(module, args, kwargs, dynamic_shapes=shapes), path)
    return path


def pictures(folder: Path, **limits: int) -> Path:
    steps = {2: 8 * Dim("_h", **limits), 3: 8 * Dim("_w", **limits)}
    example = (torch.randn(2, 3, 32, 48),)
    return exported(folder / "pictures.pt2", seeded(Pictures), example, shapes=({0: Dim("n"), **steps},))


def taken(folder: Path, program: Path, *, samples: Path | None = None, **params: Any) -> StageRun:
    inputs = {"program": program} | ({"samples": samples} if samples else {})
    return run_stage(stage("model.program"), folder / "bundle", inputs=inputs, params=params, trust=True)


def made(folder: Path, uses: str, bundle: Path, **inputs: Any) -> StageRun:
    return run_stage(stage(uses), folder / uses, inputs={"model": bundle, **inputs})


@pytest.mark.parametrize("uses", ["torch.trace", "torch.script", "torch.export", "onnx.export"])
def test_torchscript_becomes_every_format_with_its_control_flow(tmp_path: Path, uses: str) -> None:
    bundle = taken(tmp_path, scripted(tmp_path), example={"shape": [2, 4]})["model"]
    found = made(tmp_path, uses, bundle)
    assert found.figures["max_abs"] <= found.figures["allowed"]
    judged = {"candidate": found["model"], "reference": bundle}
    module, below = seeded(Turns), -np.ones((3, 4), np.float32)
    parity = run_stage(stage("verify.parity"), tmp_path / "p", inputs=judged)
    assert parity.figures["argmax_agreement"] == 1.0
    runs = load_bundle(bundle).module()
    assert torch.equal(runs(torch.from_numpy(below)), module(torch.from_numpy(below)))


@pytest.mark.parametrize(
    "uses",
    ["torch.export", "onnx.export", pytest.param("mobile.executorch", marks=pytest.mark.slow)],
)
def test_an_exported_program_goes_on_with_its_axes(tmp_path: Path, uses: str) -> None:
    taken_ = taken(tmp_path, pictures(tmp_path, max=12))
    bundle = load_bundle(taken_["model"])
    assert bundle.inputs[0].dynamic == {0: "batch", 2: "height", 3: "width"}
    assert bundle.axes["height"] == Axis("height", multiple_of=8, min=16, max=96)
    assert taken_.figures["checklist"]["batch of one agrees"]["result"] == "pass"
    found = made(tmp_path, uses, taken_["model"])
    assert found.figures["max_abs"] <= found.figures["allowed"]


def test_a_trace_of_an_exported_program_takes_other_batches(tmp_path: Path) -> None:
    program = exported(
        tmp_path / "e.pt2",
        seeded(lambda: nn.Linear(4, 3)),
        (torch.randn(2, 4),),
        shapes=({0: Dim("n", max=9)},),
    )
    traced = made(tmp_path, "torch.trace", taken(tmp_path, program)["model"])["model"]
    assert torch.jit.load(traced)(torch.zeros(7, 4)).shape == (7, 3)


def test_inputs_of_any_structure_have_their_own_names(tmp_path: Path) -> None:
    batch = {"x": torch.randn(3, 4), "attention_mask": torch.ones(3, 5, dtype=torch.int64)}
    size = Dim("n")
    program = exported(
        tmp_path / "nested.pt2", seeded(Nested), (batch, None), {"scale": torch.ones(1)},
        {"batch": {"x": {0: size}, "attention_mask": {0: size, 1: Dim("m", max=9)}}, "flag": None, "scale": None},
    )  # fmt: skip
    bundle = load_bundle(taken(tmp_path, program, output_names=["scores"])["model"])
    assert [port.name for port in bundle.inputs] == ["batch_x", "batch_attention_mask", "scale"]
    assert bundle.inputs[1].dynamic == {0: "batch", 1: "length"}
    assert bundle.axes["length"].max == 9
    mask = bundle.cases[0].inputs["batch_attention_mask"]
    assert {0, 1} == set(mask.flatten().tolist())
    assert (mask[:, 0] == 1).all()
    assert made(tmp_path, "onnx.export", bundle.folder).figures["max_abs"] < 1e-5


def test_the_program_s_own_example_says_which_ids_there_are(tmp_path: Path) -> None:
    ids = torch.tensor([[4, 9, 2], [1, 0, 6]])
    program = exported(
        tmp_path / "ids.pt2", seeded(lambda: nn.Embedding(10, 3)), (ids,), shapes=({0: Dim("n")},)
    )
    cases = load_bundle(taken(tmp_path, program)["model"]).cases
    assert max(int(case.inputs["input"].max()) for case in cases) == 9


def test_axes_get_the_names_and_limits_that_the_user_says(tmp_path: Path) -> None:
    dynamic = {"picture": {"0": "frames", "2": {"name": "rows", "min": 24, "max": 64}}}
    bundle = load_bundle(taken(tmp_path, pictures(tmp_path), dynamic=dynamic)["model"])
    assert bundle.inputs[0].dynamic == {0: "frames", 2: "rows"}
    assert bundle.axes["rows"] == Axis("rows", multiple_of=8, min=24, max=64)
    assert {case.inputs["picture"].shape[3] for case in bundle.cases} == {48}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"dynamic": {"picture": {"1": "colours"}}}, "exported with axis 1 of 'picture' fixed to 3"),
        ({"dynamic": {"image": {"0": "batch"}}}, "there is no input 'image', only picture"),
        ({"example": {"image": {"shape": [1]}}}, "the program has no input 'image', it has picture"),
        (
            {"example": {"shape": [2, 4, 32, 32]}},
            r"takes float32 of shape \[s\d+, 3, 8\*s\d+, .* not float32",
        ),
        ({"example": {"shape": [2, 3, 32, 32], "dtype": "float64"}}, "not float64 of shape"),
        ({"dynamic": {"picture": {"2": {"name": "h", "max": 8}}}}, "no size satisfies"),
    ],
)
def test_what_doesn_t_fit_the_program_is_refused(tmp_path: Path, params: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        taken(tmp_path, pictures(tmp_path), **params)


def test_torchscript_without_an_example_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="a TorchScript program doesn't say which shapes it takes") as error:
        taken(tmp_path, scripted(tmp_path))
    assert error.value.fix == "set `example: {x: {shape: […]}}`"


def test_a_trace_with_a_baked_batch_is_refused_by_the_axis(tmp_path: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x.view(2, 4) * 2

    torch.jit.save(torch.jit.trace(Baked(), torch.zeros(2, 4)), tmp_path / "baked.pt")
    with pytest.raises(StageError, match="the dynamic axis 'batch' .* works only with size 2"):
        taken(tmp_path, tmp_path / "baked.pt", example={"shape": [2, 4]})


def test_half_a_program_and_one_in_training_mode(tmp_path: Path) -> None:
    half = torch.jit.trace(seeded(lambda: nn.Linear(4, 4)).half(), torch.zeros(2, 4).half())
    torch.jit.save(half, tmp_path / "half.pt")
    example = {"shape": [2, 4], "dtype": "float16"}
    assert made(tmp_path, "torch.trace", taken(tmp_path, tmp_path / "half.pt", example=example)["model"])
    with pytest.raises(StageError, match=r"fails on the example .*dtype"):
        taken(tmp_path, tmp_path / "half.pt", example={"shape": [2, 4]})
    dropping = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    program = exported(tmp_path / "train.pt2", dropping, (torch.randn(2, 4),), shapes=({0: Dim("n")},))
    with pytest.raises(GateError, match="two runs differ"):
        taken(tmp_path, program)


# Another machine, another torch ------------------------------------------------------------


def test_torchscript_of_a_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x + torch.ones(3, device="cuda:1")

    torch.jit.save(torch.jit.script(Shifted()), tmp_path / "gpu.pt")
    bundle = taken(tmp_path, tmp_path / "gpu.pt", example={"shape": [2, 3]})["model"]
    assert made(tmp_path, "torch.export", bundle).figures["max_abs"] == 0


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as archive:
        for name in given.namelist():
            archive.writestr(name, change(name, given.read(name)))
    return target


def test_an_exported_program_of_a_gpu_is_moved_to_the_cpu(tmp_path: Path) -> None:
    """Its tensors are said to be on cuda:0 wherever torch writes that, as on a machine that has one."""
    example = torch.randn(2, 3, 32, 48)
    moved = io.BytesIO()
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        torch.save(((example,), {}), moved)

    def change(name: str, record: bytes) -> bytes:
        if "sample_inputs" in name:
            return moved.getvalue()
        return record.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')

    program = rewritten(pictures(tmp_path), tmp_path / "gpu.pt2", change)
    with zipfile.ZipFile(program) as archive:
        assert any(b'"cuda"' in archive.read(name) for name in archive.namelist())
    bundle = taken(tmp_path, program)["model"]
    assert made(tmp_path, "onnx.export", bundle).figures["max_abs"] < 1e-5


def test_a_program_of_another_torch_is_refused_by_its_version(tmp_path: Path) -> None:
    def older(name: str, record: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return record
        said = json.loads(record)
        return json.dumps(
            said | {"schema_version": {"major": 7, "minor": 3}, "torch_version": "2.5.1"}
        ).encode()

    program = rewritten(pictures(tmp_path), tmp_path / "old.pt2", older)
    with pytest.raises(
        StageError, match=r"exported by torch 2\.5\.1 \(schema 7\); torch .* reads schema \d+"
    ):
        taken(tmp_path, program)


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    empty = rewritten(
        pictures(tmp_path), tmp_path / "d.pt2", lambda n, r: b"{" if n.endswith("model.json") else r
    )
    with pytest.raises(StageError, match=r"damaged: its models/\*\.json can't be read"):
        taken(tmp_path, empty)
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as archive:
        archive.writestr("s/constants.pkl", b"")
    with pytest.raises(StageError, match=r"the TorchScript program can't be loaded by torch "):
        taken(tmp_path, tmp_path / "s.pt", example={"shape": [1]})
    torch.save({"w": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(StageError, match=r"c\.pt is neither TorchScript nor an exported program"):
        taken(tmp_path, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/data/aotinductor/model/model.wrapper.so", b"")
    with pytest.raises(StageError, match="is a package of AOTInductor: machine code"):
        taken(tmp_path, tmp_path / "a.pt2")


def test_nothing_tells_where_or_under_which_name_a_program_was_saved(tmp_path: Path) -> None:
    bytes_ = []
    for place in ("here", "elsewhere"):
        (tmp_path / place).mkdir()
        program = exported(
            tmp_path / place / f"{place}.pt2", seeded(lambda: nn.Linear(4, 3)), (torch.zeros(2, 4),)
        )
        bundle = taken(tmp_path / place, program)["model"]
        bytes_.append({path.name: path.read_bytes() for path in bundle.iterdir()})
    assert bytes_[0] == bytes_[1]
    assert b"/test_model_program.py" not in bytes_[0]["program.pt2"]
    assert str(Path(__file__).parent).encode() not in b"".join(bytes_[0].values())


# What has no layers, and the labels --------------------------------------------------------


@pytest.mark.parametrize("uses", ["torch.save_full", "torch.quantize_dynamic"])
def test_what_works_on_layers_says_that_a_program_has_none(tmp_path: Path, uses: str) -> None:
    bundle = taken(tmp_path, scripted(tmp_path), example={"shape": [2, 4]})["model"]
    with pytest.raises(StageError, match=r"the model is a program \(program\.pt\), which has no layers"):
        made(tmp_path, uses, bundle)


def test_torchscript_is_packed_as_it_is(tmp_path: Path) -> None:
    program = scripted(tmp_path)
    bundle = taken(tmp_path, program, example={"shape": [2, 4]})["model"]
    packed = made(tmp_path, "package.sagemaker", program, reference=bundle)
    assert packed.figures["max_abs"] == 0


@pytest.mark.parametrize(
    ("inputs", "labels", "kept"),
    [
        pytest.param(
            [("ids", "int64", ("s0", "s1")), ("attention_mask", "int64", ("s2", "s3"))],
            {"ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "attention_mask_1"}},
            [], id="a batch in numbers of its own",
        ),
        pytest.param(
            [("ids", "int64", ("s0", "s1")), ("mask", "int64", ("s0", "s1 + 1")), ("x", "float32", ("s0", "2*s4"))],
            {"ids": {0: "batch"}, "mask": {0: "batch"}, "x": {0: "batch", 1: "x_1"}},
            ["axis 1 of 'ids'", "axis 1 of 'mask'"], id="one is another and one more",
        ),
        pytest.param(
            [("a", "float32", ("s0", 3)), ("b", "float32", ("2*s0", 3))],
            {"a": {}, "b": {}}, ["axis 0 of 'a'", "axis 0 of 'b'"], id="one is twice another",
        ),
    ],
)  # fmt: skip
def test_labels_follow_from_the_symbols(inputs: Any, labels: Any, kept: list[str]) -> None:
    declared = [Declared(name, dtype, dims, (2,) * len(dims)) for name, dtype, dims in inputs]
    assert symbols.labelled(declared) == (labels, kept)


# Programs of strangers ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_scripted_resnet_with_free_sizes(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    program = scripted(tmp_path, lambda: torchvision.models.resnet18(num_classes=5))
    dynamic = {"x": {"0": "batch", "2": "height", "3": "width"}}
    bundle = taken(tmp_path, program, example={"shape": [1, 3, 64, 64]}, dynamic=dynamic)["model"]
    assert made(tmp_path, "onnx.export", bundle).figures["max_abs"] < 1e-4
    assert made(tmp_path, "torch.script", bundle).figures["max_abs"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["traced", "exported"])
def test_a_bert_with_a_mask(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37,
        max_position_embeddings=64, num_labels=3, return_dict=False,
    )  # fmt: skip
    model = seeded(lambda: transformers.BertForSequenceClassification(config))
    ids, mask = torch.randint(0, 99, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    if kind == "traced":
        with torch.no_grad():
            torch.jit.save(torch.jit.trace(model, (ids, mask), strict=False), tmp_path / "bert.pt")
        axes = {"0": "batch", "1": "length"}
        params: dict[str, Any] = {
            "example": {"input_ids": {"shape": [2, 7], "dtype": "int64", "high": 99},
                        "attention_mask": {"shape": [2, 7], "dtype": "int64"}},
            "dynamic": {"input_ids": axes, "attention_mask": axes},
        }  # fmt: skip
        bundle = taken(tmp_path, tmp_path / "bert.pt", **params)["model"]
    else:
        batch, length = Dim("batch"), Dim("length", max=64)
        shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
        program = exported(tmp_path / "bert.pt2", model, (ids,), {"attention_mask": mask}, shapes)
        bundle = taken(tmp_path, program)["model"]
        assert load_bundle(bundle).axes["length"].max == 64
    assert made(tmp_path, "onnx.export", bundle).figures["max_abs"] < 1e-5


@pytest.mark.slow
def test_a_timm_net_that_was_exported_is_compiled(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = seeded(lambda: timm.create_model("mobilenetv3_small_050", num_classes=7))
    example = (torch.randn(4, 3, 64, 64),)
    program = exported(tmp_path / "net.pt2", model, example, shapes=({0: Dim("n", max=32)},))
    bundle = taken(tmp_path, program)["model"]
    assert load_bundle(bundle).axes["batch"].max == 32
    found = made(tmp_path, "torch.aot", bundle)
    assert found.figures["max_abs"] <= found.figures["allowed"]
