"""What the Hub's clients read texts and pictures by, of an io.json: tokenizer_config, preprocessor_config.

Only what they can do alike: a picture that is prepared in a way that they have no word for has no such file.
transformers 5 prepares pictures as ours do with `backend="pil"`, and else up to two levels of 255 beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["written"]

_PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_INPUTS = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
_USUAL = {"mode": "RGB", "channels": "RGB", "layout": "CHW", "dtype": "float32"}


def written(io: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the content of the files by their path."""
    found = {}
    if "text" in io:
        found["tokenizer_config.json"] = _tokenizer(io["text"])
    if "picture" in io and (config := _processor(io["picture"])):
        found["preprocessor_config.json"] = config
    return found


def _tokenizer(text: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text["max_length"],
        "model_input_names": [name for part, name in _INPUTS.items() if text.get(part) is not None],
        "pad_token": text["pad_token"],
        "padding_side": text["padding_side"],
        "truncation_side": text["truncation_side"],
        "clean_up_tokenization_spaces": False,
    }


def _processor(picture: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preprocessor_config.json, nothing for what it can't say."""
    if any(picture.get(name) != usual for name, usual in _USUAL.items()):
        return {}
    scale, resize, crop = picture.get("scale"), picture.get("resize") or {}, picture.get("crop")
    config: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor" if crop or "shortest" in resize else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": bool(resize),
        "resample": _PILLOW[picture["interpolation"]],
        "do_center_crop": bool(crop),
        "do_rescale": scale is not None,
        "do_normalize": picture.get("mean") is not None,
    }
    if resize:
        config["size"] = (
            {"shortest_edge": resize["shortest"]} if "shortest" in resize
            else dict(zip(("height", "width"), resize["size"], strict=True))
        )  # fmt: skip
    if crop:
        config["crop_size"] = dict(zip(("height", "width"), crop, strict=True))
    if scale is not None:
        config["rescale_factor"] = scale.get("multiply", 1 / scale.get("divide", 1))
    if config["do_normalize"]:
        config |= {"image_mean": picture["mean"], "image_std": picture["std"]}
    return config
