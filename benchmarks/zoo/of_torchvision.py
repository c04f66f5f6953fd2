"""Architectures of torchvision: classifiers, segmentation, detection, video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .entries import Entry, Given, Sizes

__all__ = ["ENTRIES"]

_AREA: Mapping[str, Sizes] = {"height": (64, 96, 128), "width": (96, 64, 160)}
_PLAIN = ["alexnet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "resnet18",
          "shufflenet_v2_x0_5", "squeezenet1_1"]  # fmt: skip
_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("convnext", {}),
    "densenet": (
        "torchvision.models:DenseNet",
        {"growth_rate": 8, "block_config": [2, 2], "num_classes": 10},
    ),
    "resnext": ("resnext", {}),
}
_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": (
        "torchvision.models:SwinTransformer",
        {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": [4, 4],
         "num_classes": 10},
    ),
    "vit": (
        "torchvision.models:VisionTransformer",
        {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64,
         "num_classes": 10},
    ),
}  # fmt: skip
_NO_WEIGHTS = {"weights": None, "weights_backbone": None}
_SEGMENTATION = ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
_DETECTION = ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"]
_WRAPPED = "torchvision_nets.py"


def _entry(name: str, factory: str, kwargs: Mapping[str, Any], given: Given, *, free: bool = True) -> Entry:
    factory = factory if ":" in factory else f"{_WRAPPED}:{factory}"
    argument = "input" if name.startswith("lraspp") else "x"
    return Entry(
        f"torchvision/{name}", "torchvision", {argument: given}, factory, kwargs, _AREA if free else {}
    )


_PICTURES = Given(("batch", 3, "height", "width"))

ENTRIES = [
    *(
        _entry(name, f"torchvision.models:{name}", {"num_classes": 10, "weights": None}, _PICTURES)
        for name in _PLAIN
    ),
    *(_entry(name, factory, kwargs, _PICTURES) for name, (factory, kwargs) in _SMALL.items()),
    *(
        _entry(name, factory, kwargs, Given(("batch", 3, 64, 64)), free=False)
        for name, (factory, kwargs) in _TRANSFORMERS.items()
    ),
    *(
        _entry(
            name,
            f"torchvision.models.segmentation:{name}",
            {"num_classes": 5, **_NO_WEIGHTS},
            _PICTURES,
        )
        for name in _SEGMENTATION
    ),
    _entry("fcn", "fcn", {}, _PICTURES),
    *(_entry(name, "detector", {"name": name}, Given((3, "height", "width"))) for name in _DETECTION),
    Entry(
        "torchvision/r3d_18", "torchvision", {"x": Given(("batch", 3, "frames", 32, 32))},
        "torchvision.models.video:r3d_18", {"num_classes": 10, "weights": None}, {"frames": (8, 12, 16)},
    ),
]  # fmt: skip
