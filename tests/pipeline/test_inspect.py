"""`checkpoint.inspect`: what somebody's file is, which arguments of a factory fit it, which input its model takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploy_runner.errors import StageError
from deploy_runner.testing import run_stage
from tests.bundles import stage

NETS = """
import torch
from torch import nn

class Waves(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(cfg["channels"], 8, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.fc = nn.Linear(8, cfg["classes"])

    def forward(self, wave):
        return self.fc(self.body(wave))

class Reader(nn.Module):
    def __init__(self, vocabulary: int, width: int = 16, kinds: int = 2):
        super().__init__()
        self.words, self.rnn = nn.Embedding(vocabulary, width), nn.GRU(width, width)
        self.out = nn.Linear(width, kinds)

    def forward(self, tokens, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.words(tokens), lengths, enforce_sorted=False)
        return self.out(self.rnn(packed)[1][-1])

class Flat(nn.Module):
    def __init__(self, width: int = 9, classes: int = 10):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(width, classes)

    def forward(self, image):
        return self.fc(self.conv(image).flatten(1))

class Cube(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 2)

    def forward(self, x):
        return self.l(x)

class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 2)

    def forward(self, images):
        return [{"box": self.l(image)} for image in images]

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def nets(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "nets.py").write_text(NETS)
    made: dict[str, Any] = {}
    exec(NETS, made)
    return made


def look(folder: Path, path: Path, *, trust: bool = False, **params: Any) -> dict[str, Any]:
    """Return what is found; the project is the folder."""
    made = run_stage(stage("checkpoint.inspect"), folder / f"look-{len(list(folder.iterdir()))}",
                     inputs={"model": path}, params=params, project=folder, trust=trust)  # fmt: skip
    found: dict[str, Any] = json.loads(made["found"].read_text())
    return found


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_the_whole_configuration_goes_where_a_factory_takes_one(tmp_path: Path, nets: dict[str, Any]) -> None:
    config = {"channels": 2, "classes": 3}
    path = saved(tmp_path / "w.pt", {"config": config, "net": nets["Waves"](config).state_dict()})
    fit = look(tmp_path, path, factory="nets.py:Waves")["fit"]
    assert fit["kwargs"] == {"cfg": config}
    assert fit["example"] == {"shape": [1, 2, 16000]}
    assert fit["outputs"] == {"output": [1, 3]}


def test_sizes_follow_from_the_weights_and_lengths_from_their_name(
    tmp_path: Path, nets: dict[str, Any]
) -> None:
    path = saved(tmp_path / "r.pt", nets["Reader"](50, 24, 3).state_dict())
    fit = look(tmp_path, path, factory="nets.py:Reader", kwargs={"vocabulary": 50})["fit"]
    assert fit["kwargs"] == {"vocabulary": 50, "width": 24, "kinds": 3}
    assert fit["example"] == {
        "tokens": {"shape": [16, 1], "dtype": "int64", "high": 50},
        "lengths": {"shape": [1], "dtype": "int64"},
    }
    assert fit["dynamic"] == {"tokens": {"0": "sequence", "1": "batch"}, "lengths": {"0": "batch"}}


def test_the_one_side_that_a_flat_layer_takes_is_found(tmp_path: Path, nets: dict[str, Any]) -> None:
    path = saved(tmp_path / "f.pt", nets["Flat"](4 * 19 * 19, 5).state_dict())
    fit = look(tmp_path, path, factory="nets.py:Flat")["fit"]
    assert fit["kwargs"] == {"width": 1444, "classes": 5}
    assert fit["example"] == {"shape": [1, 1, 21, 21]}


def test_a_result_for_each_sample_has_no_batch(tmp_path: Path, nets: dict[str, Any]) -> None:
    fit = look(tmp_path, saved(tmp_path / "b.pt", nets["Boxes"]().state_dict()), factory="nets.py:Boxes")[
        "fit"
    ]
    assert (fit["example"], fit["dynamic"]) == ({"shape": [1, 4]}, {})


def test_weights_beside_others_are_found_and_of_two_that_fit_none_is_chosen(
    tmp_path: Path, nets: dict[str, Any]
) -> None:
    state = nets["Cube"]().state_dict()
    beside = {**{f"model.net.{n}": t for n, t in state.items()}, "loss.weight": torch.ones(2)}
    path = saved(tmp_path / "b.pt", {"state_dict": beside})
    assert look(tmp_path, path, factory="nets.py:Cube")["fit"]["strip_prefix"] == "model.net."
    both = {f"{who}.{n}": t for who in ("student", "teacher") for n, t in state.items()}
    with pytest.raises(StageError, match="the weights match the model under student. and under teacher."):
        look(tmp_path, saved(tmp_path / "c.pt", both), factory="nets.py:Cube")


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    """The first byte of this safetensors file is that of an ONNX file."""
    for count in range(1, 200):
        save_file({"w" * count: torch.ones(1)}, tmp_path / "weights.bin")
        if (tmp_path / "weights.bin").read_bytes()[0] == 8:
            break
    found = look(tmp_path, tmp_path / "weights.bin")
    assert (found["kind"], found["format"]) == ("weights", "safetensors")


def test_a_pickled_module_is_looked_at_only_with_trust(tmp_path: Path) -> None:
    path = saved(tmp_path / "whole.pt", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(StageError, match="is a pickled module, which contains code"):
        look(tmp_path, path)
    found = look(tmp_path, path, trust=True)
    assert found["module"] == "Sequential"
    assert list(found["tensors"]) == ["0.weight", "0.bias"]


def test_what_a_factory_says_is_kept(tmp_path: Path, nets: dict[str, Any]) -> None:
    path = saved(tmp_path / "c.pt", nets["Cube"]().state_dict())
    with pytest.raises(
        StageError, match=r"nets.py:broken fails: RuntimeError: no weights here at nets.py:\d+"
    ):
        look(tmp_path, path, factory="nets.py:broken")
    with pytest.raises(StageError, match=r"forward\(\) refuses shape \[1, 3\]: mat1 and mat2"):
        look(tmp_path, path, factory="nets.py:Cube", shape=[1, 3])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs", "factory", "also"),
    [
        ("vgg11_bn", {}, "torchvision.models:vgg11_bn", []),
        ("convnext_tiny", {}, "torchvision.models:convnext_tiny", []),
        ("swin_t", {}, "torchvision.models:swin_t", []),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}, "torchvision.models.segmentation:deeplabv3_mobilenet_v3_large", []),
        ("regnet_y_400mf", {}, "torchvision.models:regnet_y_400mf", []),
        ("r3d_18", {}, "torchvision.models.video:r3d_18", []),
        ("ssdlite320_mobilenet_v3_large", {}, "torchvision.models.detection:ssdlite320_mobilenet_v3_large", []),
        ("fasterrcnn_mobilenet_v3_large_fpn", {}, "torchvision.models.detection:fasterrcnn_mobilenet_v3_large_320_fpn",
         ["torchvision.models.detection:fasterrcnn_mobilenet_v3_large_fpn"]),
    ],
)  # fmt: skip
def test_models_of_torchvision_are_recognised(
    tmp_path: Path, name: str, kwargs: dict[str, Any], factory: str, also: list[str]
) -> None:
    import inspect

    import torchvision

    build = torchvision.models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(build).parameters:
        kwargs = {**kwargs, "weights_backbone": None}
    path = saved(tmp_path / "x.pt", {"model": build(weights=None, num_classes=7, **kwargs).state_dict()})
    found = look(tmp_path, path)["library"]
    assert (found["factory"], found["also"]) == (factory, also)
    assert found["kwargs"] == {**kwargs, "num_classes": 7}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050", "mixer_s32_224"]
)
def test_models_of_timm_are_recognised_by_their_name(tmp_path: Path, name: str) -> None:
    import timm

    net = timm.create_model(name, num_classes=7)
    path = saved(tmp_path / "x.pt", {"arch": name, "state_dict": net.state_dict()})
    assert look(tmp_path, path)["library"]["kwargs"] == {"model_name": name, "num_classes": 7}
    wrong = saved(tmp_path / "y.pt", {"arch": name, "state_dict": {"conv1.weight": torch.ones(3)}})
    assert look(tmp_path, wrong)["library"] is None
