"""Pictures to tensors, as Pillow and torchvision's transforms of PIL images make them, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .decoding import decoded
from .problems import BadInput

__all__ = ["GEOMETRY", "Picture", "variants"]

GEOMETRY = "picture:geometry"
"""Beside the inputs where an answer has boxes: [N, 6], see Picture.geometry."""


class Picture:
    """JPEG, PNG or WebP as a tensor.

    The specification has, in the order in which it is done: `max_pixels`; `exif`, whether the orientation
    is followed; `background` [r, g, b] of transparent pixels (None: transparency is dropped); `mode`, RGB or
    L; `resize`, None, {"shortest": n} or {"size": [h, w]}, by `interpolation`; `crop` [h, w] of the centre,
    padded with zeros; `scale`, None, {"divide": 255} or {"multiply": f}; `mean` and `std` by channel;
    `channels`, RGB or BGR; `layout`, CHW or HWC; `dtype`, float32 or uint8; `tensor`, the input's name;
    and `geometry`, whether what places boxes is given as well.

    The sizes of a resized picture are truncated and a crop's place is rounded as torchvision does:
    https://docs.pytorch.org/vision/stable/transforms.html
    """

    field = "image"

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        self._spec = spec
        channels = 1 if spec["mode"] == "L" else 3
        shape = (channels, 1, 1) if spec["layout"] == "CHW" else (1, 1, channels)
        self._mean, self._std = (
            None if spec[key] is None else np.array(spec[key], np.float32).reshape(shape)
            for key in ("mean", "std")
        )

    def arrays(self, given: Sequence[bytes]) -> dict[str, Any]:
        """Return the pictures [len(given), C, H, W], or as the layout is. Raises BadInput."""
        spec, batch = self._spec, None
        placed = []
        for place, data in enumerate(given):
            image = decoded(data, spec)
            pixels = self._pixels(image)
            if spec.get("geometry"):
                placed.append(self.geometry(image.size))
            if batch is None:
                batch = np.empty((len(given), *pixels.shape), spec["dtype"])
            elif pixels.shape != batch.shape[1:]:
                sizes = f"{list(batch.shape[1:])} and {list(pixels.shape)}"
                raise BadInput(f"the pictures of a request have different sizes: {sizes}")
            batch[place] = pixels
            if spec["dtype"] == "float32":
                self._normalize(batch[place])
        found: dict[str, Any] = {spec["tensor"]: batch}
        return found | {GEOMETRY: np.array(placed)} if placed else found

    def geometry(self, size: tuple[int, int]) -> tuple[float, ...]:
        """Return where the model's pixels are in an upright picture of a size, (width, height).

        A pixel (x, y) of the model's is at ((x + left) across, (y + top) down): (left, top, across, down,
        width, height).
        """
        spec = self._spec
        width, height = size if spec["resize"] is None else size_of(size, spec)
        crop = spec["crop"] or (height, width)
        left, top = _offset(width, crop[1]), _offset(height, crop[0])
        return left, top, size[0] / width, size[1] / height, *size

    def _pixels(self, image: Any) -> Any:
        """Return the pixels, uint8, in the layout."""
        spec = self._spec
        image = self._cropped(self._resized(image))
        pixels = image if isinstance(image, np.ndarray) else np.asarray(image)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if spec["channels"] == "BGR":
            pixels = pixels[..., ::-1]
        return pixels.transpose(2, 0, 1) if spec["layout"] == "CHW" else pixels

    def _resized(self, image: Any) -> Any:
        spec = self._spec
        if spec["resize"] is None:
            return image
        width, height = size_of(image.size, spec)
        if width * height > spec["max_pixels"]:
            said = f"the picture of {image.width}x{image.height} pixels would become {width}x{height}"
            raise BadInput(said, too_large=True)
        if (width, height) == image.size:
            return image
        if spec.get("antialias") is False:
            return _sampled(np.asarray(image), width, height)
        from PIL import Image

        return image.resize((width, height), Image.Resampling[spec["interpolation"].upper()])

    def _cropped(self, image: Any) -> Any:
        if self._spec["crop"] is None:
            return image
        if isinstance(image, np.ndarray):
            from PIL import Image

            image = Image.fromarray(image)
        height, width = self._spec["crop"]
        left, top = _offset(image.width, width), _offset(image.height, height)
        return image.crop((left, top, left + width, top + height))

    def _normalize(self, pixels: Any) -> None:
        scale = self._spec["scale"]
        if scale is not None and "divide" in scale:
            pixels /= np.float32(scale["divide"])
        elif scale is not None:
            pixels *= np.float32(scale["multiply"])
        if self._mean is not None:
            pixels -= self._mean
        if self._std is not None:
            pixels /= self._std


def size_of(size: tuple[int, int], spec: Mapping[str, Any]) -> tuple[int, int]:
    """Return (width, height) after resizing."""
    width, height = size
    resize = spec["resize"]
    if "size" in resize:
        return resize["size"][1], resize["size"][0]
    short: int = resize["shortest"]
    whole = round if spec.get("rounding") == "round" else int
    if width <= height:
        return short, max(1, whole(short * height / width))
    return max(1, whole(short * width / height)), short


def _offset(size: int, crop: int) -> int:
    """Return where a crop of the centre begins, below 0 where it is larger than the picture."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2)


def _sampled(pixels: Any, width: int, height: int) -> Any:
    """Resize bilinearly without antialias, as code does that resizes tensors, or by OpenCV."""
    pixels = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32)
    for axis, size in ((0, height), (1, width)):
        old = pixels.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = places.astype(int)
        share = (places - low).astype(np.float32).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        first, second = (np.take(pixels, np.minimum(low + step, old - 1), axis) for step in (0, 1))
        pixels = first + (second - first) * share
    return np.rint(pixels).astype(np.uint8).squeeze()


def variants(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a step, what code does that takes it otherwise, and the specification of that."""
    spec = dict(spec)
    resize, scaled = spec["resize"], spec["scale"]
    if resize is not None:
        yield "resize", "resizes without antialias", {**spec, "antialias": False}
        for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
            if name != spec["interpolation"]:
                yield "resize", f"interpolates by {name}", {**spec, "interpolation": name}
        if "shortest" in resize:
            side = resize["shortest"]
            yield "resize", f"resizes to {side} by {side}", {**spec, "resize": {"size": [side, side]}}
            yield "resize", "rounds the longer side", {**spec, "rounding": "round"}
        elif resize["size"][0] == resize["size"][1]:
            short = {**spec, "resize": {"shortest": resize["size"][0]}, "crop": resize["size"]}
            yield "resize", "resizes the shorter side, and cuts the centre", short
        yield "resize", "doesn't resize", {**spec, "resize": None}
    if spec["crop"] is not None:
        whole = {**spec, "crop": None, "resize": {"size": spec["crop"]}}
        yield "crop", "resizes to the size of the crop", whole
        yield "crop", "doesn't crop", {**spec, "crop": None}
    turned = "doesn't turn pictures by EXIF" if spec["exif"] else "turns pictures by EXIF"
    yield "exif", turned, {**spec, "exif": not spec["exif"]}
    other = "BGR" if spec["channels"] == "RGB" else "RGB"
    yield "channels", f"has the channels in the order {other}", {**spec, "channels": other}
    last = {key: spec[key][::-1] if spec[key] else None for key in ("mean", "std")}
    yield "channels", f"puts the channels into the order {other} at last", {**spec, "channels": other, **last}
    for colour in ([255, 255, 255], [0, 0, 0], None):
        if colour != spec["background"]:
            does = f"lays transparent pixels on {colour}" if colour else "drops transparency"
            yield "background", does, {**spec, "background": colour}
    yield "scale", "doesn't scale", {**spec, "scale": None}
    if scaled != {"divide": 255}:
        yield "scale", "divides by 255", {**spec, "scale": {"divide": 255}}
    yield "scale", "scales to -1 to 1", {**spec, "scale": {"divide": 127.5}, "mean": [1.0] * 3, "std": None}
    plain = {**spec, "mean": None, "std": None}
    yield "mean", "neither subtracts a mean nor divides by a deviation", plain
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    if spec["mode"] == "RGB" and (spec["mean"], spec["std"]) != (mean, std):
        yield "mean", "has ImageNet's mean and deviation", {**spec, "mean": mean, "std": std}
    if spec["mode"] == "RGB" and spec["mean"] != [0.5] * 3:
        yield "mean", "has a mean and deviation of 0.5", {**spec, "mean": [0.5] * 3, "std": [0.5] * 3}
    layout = "HWC" if spec["layout"] == "CHW" else "CHW"
    yield "layout", f"has the layout {layout}", {**spec, "layout": layout}
