"""Architectures of timm, made small by its own arguments where it has some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .entries import Entry, Given, Sizes

__all__ = ["ENTRIES"]

_FREE: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": [1, 1, 1, 1]},
    "convnextv2_atto": {"depths": [1, 1, 1, 1]},
    "darknet17": {},
    "davit_tiny": {"depths": [1, 1], "embed_dims": [24, 48], "num_heads": [2, 4]},
    "densenet121": {"block_config": [2, 2], "growth_rate": 8},
    "dla46_c": {},
    "edgenext_xx_small": {"depths": [1, 1, 1, 1]},
    "ese_vovnet19b_slim": {},
    "inception_next_atto": {"depths": [1, 1, 1, 1]},
    "lcnet_035": {},
    "mambaout_femto": {"depths": [1, 1, 1, 1]},
    "mobilenetv3_small_050": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "regnetx_002": {},
    "resnet10t": {},
    "sequencer2d_s": {"layers": [1, 1, 1, 1]},
    "starnet_s1": {"depths": [1, 1, 1, 1]},
    "xcit_nano_12_p16_224": {"depth": 2},
}
"""Models that take pictures of other sizes, which are declared to vary."""

_NEEDS_EVEN = ("dla46_c", "mobilevit_xxs")
_MULTIPLES: Mapping[str, Mapping[str, int]] = {"mobilevit_xxs": {"height": 32, "width": 32}}
_EVEN: Mapping[str, Sizes] = {"height": (64, 96, 128), "width": (96, 64, 160)}

_FIXED: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "cait_xxs24_224": {"depth": 1},
    "deit3_small_patch16_224": {"depth": 2, "embed_dim": 64, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": [1, 1], "embed_dim": 24, "num_heads": [2, 4]},
    "vit_tiny_patch16_224": {"depth": 2},
}
"""Models of one size of pictures."""


def _free(name: str, kwargs: dict[str, Any]) -> Entry:
    return Entry(
        f"timm/{name}", "timm", {"x": Given(("batch", 3, "height", "width"))}, "timm:create_model",
        {"model_name": name, "num_classes": 10, **kwargs},
        _EVEN if name in _NEEDS_EVEN else {"height": (64, 89, 128), "width": (96, 75, 160)},
        multiples=_MULTIPLES.get(name, {}),
    )  # fmt: skip


def _fixed(name: str, kwargs: dict[str, Any]) -> Entry:
    size = kwargs.get("img_size", 64)
    return Entry(
        f"timm/{name}", "timm", {"x": Given(("batch", 3, size, size))}, "timm:create_model",
        {"model_name": name, "num_classes": 10, "img_size": size, **kwargs},
    )  # fmt: skip


ENTRIES = [_free(*one) for one in _FREE.items()] + [_fixed(*one) for one in _FIXED.items()]
