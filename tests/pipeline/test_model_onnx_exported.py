"""model.onnx on what torch's two exporters make of the models of timm, torchvision and transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy_runner.testing import run_stage
from tests.bundles import stage
from tests.pipeline.strangers import described, sizes_of, take

pytestmark = pytest.mark.slow

IDS = torch.arange(14).reshape(2, 7)
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def mobilenet() -> tuple[Any, tuple[Any, ...]]:
    import timm

    return timm.create_model("mobilenetv3_small_050", num_classes=10), (torch.ones(2, 3, 64, 64),)


def segmentation() -> tuple[Any, tuple[Any, ...]]:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), (torch.ones(2, 3, 64, 64),)


def bert() -> tuple[Any, tuple[Any, ...]]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=40)  # fmt: skip
    return BertForSequenceClassification(config), tuple(TEXT.values())


def wav2vec() -> tuple[Any, tuple[Any, ...]]:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    config = Wav2Vec2Config(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return Wav2Vec2ForCTC(config), (torch.ones(2, 16000),)


def export(
    path: Path, make: Callable[[], tuple[Any, tuple[Any, ...]]], axes: tuple[int, ...], dynamo: bool
) -> Path:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module, inputs = make()
        if dynamo:
            shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in inputs)
            how: dict[str, Any] = {"dynamic_shapes": shapes, "external_data": False}
        else:
            names = [
                f"in{index}" if len(inputs) == 1 else name
                for index, name in zip(range(len(inputs)), TEXT, strict=False)
            ]
            how = {"input_names": names, "dynamic_axes": {n: {a: f"axis{a}" for a in axes} for n in names}}
        torch.onnx.export(module.eval(), inputs, str(path), dynamo=dynamo, verbose=False, **how)
    return path


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.parametrize(
    ("make", "axes", "first"),
    [
        pytest.param(mobilenet, (0, 2, 3), 224, id="timm"),
        pytest.param(segmentation, (0, 2, 3), 224, id="torchvision"),
        pytest.param(bert, (0, 1), 16, id="text"),
        pytest.param(wav2vec, (0, 1), 16000, id="speech"),
    ],
)
def test_what_torch_exports_is_taken_and_converted(
    tmp_path: Path, make: Any, axes: tuple[int, ...], first: int, dynamo: bool
) -> None:
    made = take(tmp_path, export(tmp_path / "m.onnx", make, axes, dynamo))
    name = described(made)["inputs"][0]["name"]
    assert first in sizes_of(made, name, axes[-1])
    assert all(len(sizes_of(made, name, axis)) > 1 for axis in axes)
    assert all(port["batch"] == 0 for port in described(made)["inputs"])
    inputs = {"model": made["onnx"], "reference": made["model"]}
    assert run_stage(stage("onnx.optimize"), tmp_path / "o", inputs=inputs).figures["cosine"] > 0.9999
    assert run_stage(stage("onnx.float16"), tmp_path / "h", inputs=inputs).figures["smaller"] > 1.3
