"""What timm, torchvision and preprocessor_config.json declare is done to the bit as their own code does it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy_runner.sdk import StageError
from deploy_runner.server.raw.picture import Picture
from deploy_runner.stages.model import picture_configs
from tests.serve.raw_inputs import encoded, picture

FILES = [encoded(picture(*size), "PNG") for size in ((300, 200), (120, 333), (224, 224))]


def _read(spec: dict[str, Any], data: bytes) -> Any:
    return Picture({**spec, "tensor": "x"}, Path()).arrays([data])["x"][0]


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_timm(name: str) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict(), args={})
    theirs = create_transform(**config, is_training=False)
    spec = picture_configs.of_library(f"timm:{name}")
    for data in FILES:
        wanted = theirs(Image.open(io.BytesIO(data)).convert("RGB")).numpy()
        np.testing.assert_array_equal(_read(spec, data), wanted)


@pytest.mark.parametrize("name", ["ResNet18_Weights.IMAGENET1K_V1", "EfficientNet_B0_Weights.IMAGENET1K_V1"])
def test_torchvision(name: str) -> None:
    from torchvision import models

    theirs = models.get_weight(name).transforms()
    spec = picture_configs.of_library(f"torchvision:{name}")
    for data in FILES:
        wanted = theirs(Image.open(io.BytesIO(data)).convert("RGB")).numpy()
        np.testing.assert_array_equal(_read(spec, data), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViTImageProcessor", "CLIPImageProcessor"])
def test_a_processor_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    getattr(transformers, name)().save_pretrained(tmp_path)
    hf: Any = transformers
    theirs = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    spec = picture_configs.of_hub(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    for data in FILES:
        given = Image.open(io.BytesIO(data)).convert("RGB")
        wanted = theirs(given, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(_read(spec, data), wanted)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"feature_extractor_type": "WhisperFeatureExtractor"},
            "of WhisperFeatureExtractor, not of pictures",
        ),
        (
            {"image_mean": [0.5] * 3, "size": {"longest_edge": 512}},
            "the size {'longest_edge': 512} of a processor",
        ),
        ({"image_processor_type": "Pads", "size": 3, "do_pad": True}, "Pads pads pictures"),
    ],
)
def test_what_cant_be_declared_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(StageError, match=said):
        picture_configs.of_hub(config)


def test_an_unknown_model_of_timm_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(StageError, match=r"timm has no weights 'resnet18.a1_in1'.*resnet18.a1_in1k"):
        picture_configs.of_library("timm:resnet18.a1_in1")
