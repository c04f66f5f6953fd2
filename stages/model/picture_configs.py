"""How others declare the preparation of pictures: timm, torchvision and preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploy_runner.sdk import StageError, closest

__all__ = ["of_hub", "of_library", "of_timm"]

_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL.Image.Resampling, by which preprocessor_config.json names an interpolation."""
_EPS = 1e-9
_DECLARE = "say in picture what the training did"
_PLAIN: dict[str, Any] = {
    "tensor": "", "mode": "RGB", "exif": True, "background": None, "resize": None,
    "interpolation": "bilinear", "crop": None, "scale": {"divide": 255}, "mean": None, "std": None,
    "channels": "RGB", "layout": "CHW", "dtype": "float32", "max_pixels": 50_000_000,
}  # fmt: skip


def of_library(name: str) -> dict[str, Any]:
    """Return how timm:MODEL or torchvision:WEIGHTS prepare pictures. Raises StageError."""
    library, _, what = name.partition(":")
    return _of_weights(what) if library == "torchvision" else of_timm(_cfg(what))


def _cfg(name: str) -> Mapping[str, Any]:
    import timm

    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        raise StageError(f"timm has no weights {name!r}", fix=closest(name, timm.list_pretrained())) from None
    said: Mapping[str, Any] = cfg.to_dict()
    return said


def of_timm(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a timm model's evaluation transform.

    Of crop_mode center the shorter side becomes floor(input / crop_pct), as
    https://github.com/huggingface/pytorch-image-models has it in timm/data/transforms_factory.py.
    """
    _, height, width = cfg["input_size"]
    mode, share = cfg.get("crop_mode") or "center", cfg.get("crop_pct") or 1.0
    spec = {**_PLAIN, "interpolation": cfg.get("interpolation") or "bicubic",
            "mean": list(cfg["mean"]), "std": list(cfg["std"])}  # fmt: skip
    if mode == "squash":
        size = [int(height / share), int(width / share)]
        return {**spec, "resize": {"size": size}, "crop": [height, width]}
    if mode != "center" or height != width:
        raise StageError(f"timm's crop_mode {mode!r} of {height}x{width} can't be declared", fix=_DECLARE)
    return {**spec, "resize": {"shortest": int(height / share)}, "crop": [height, width]}


def _of_weights(name: str) -> dict[str, Any]:
    from torchvision import models

    try:
        transforms: Any = models.get_weight(name).transforms()
    except (ValueError, KeyError, AttributeError):
        raise StageError(f"torchvision has no weights {name!r}",
                         fix="name them as ResNet18_Weights.IMAGENET1K_V1") from None  # fmt: skip
    if type(transforms).__name__ != "ImageClassification":
        raise StageError(
            f"the transform {type(transforms).__name__} of {name} can't be declared", fix=_DECLARE
        )
    size, crop = transforms.resize_size[0], transforms.crop_size[0]
    return {**_PLAIN, "resize": {"shortest": size}, "crop": [crop, crop],
            "interpolation": transforms.interpolation.value,
            "mean": list(transforms.mean), "std": list(transforms.std)}  # fmt: skip


def of_hub(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a preprocessor_config.json says, done by Pillow.

    transformers 5 does it by torchvision on tensors where nothing says `backend: pil`, which differs by a
    level or two of 255.
    """
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "a processor"
    if "image_mean" not in config and "size" not in config:
        raise StageError(f"the preprocessor_config.json is of {kind}, not of pictures", fix=_DECLARE)
    if config.get("do_pad") or config.get("do_reduce_labels"):
        raise StageError(f"{kind} pads pictures or changes labels, which can't be declared", fix=_DECLARE)
    spec = dict(_PLAIN)
    if config.get("do_resize", True):
        spec["resize"] = _resize(config.get("size"), str(kind))
        spec["interpolation"] = _PILLOW.get(config.get("resample", 2), "bilinear")
    if config.get("do_center_crop", False):
        crop = _resize(config.get("crop_size"), str(kind))
        spec["crop"] = crop.get("size") or [crop["shortest"]] * 2
    if config.get("do_rescale", True):
        factor = float(config.get("rescale_factor", 1 / 255))
        spec["scale"] = {"divide": 255} if abs(factor * 255 - 1) < _EPS else {"multiply": factor}
    else:
        spec["scale"] = None
    if config.get("do_normalize", True):
        spec |= {"mean": config.get("image_mean"), "std": config.get("image_std")}
    return spec


def _resize(size: Any, kind: str) -> dict[str, Any]:
    if isinstance(size, int):
        return {"size": [size, size]}
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return {"size": [size["height"], size["width"]]}
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return {"shortest": size["shortest_edge"]}
    raise StageError(f"the size {size} of {kind} can't be declared", fix=_DECLARE)
