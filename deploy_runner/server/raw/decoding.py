"""Decode pictures that anybody may have sent."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

from .problems import BadInput

__all__ = ["FORMATS", "decoded"]

FORMATS = ("JPEG", "PNG", "WEBP")
_WIDE = ("I", "F")
"""How the modes begin whose pixels have more than 8 bits."""


def decoded(data: bytes, spec: Mapping[str, Any]) -> Any:
    """Return a picture in the specification's mode, upright, without transparency.

    Its size is looked at before its pixels are read. Raises BadInput.
    """
    from PIL import Image, ImageOps

    if not isinstance(data, bytes):
        raise BadInput("a picture is sent as bytes, in JSON as base64")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Our own limit is in the specification.
            image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadInput(_too_large(spec), too_large=True) from None
    except Exception:  # Whatever a hostile file makes of it.
        raise BadInput(f"the picture is none of {', '.join(FORMATS)}, or is damaged") from None
    if image.width * image.height > spec["max_pixels"]:
        raise BadInput(f"{_too_large(spec)}, it has {image.width}x{image.height}", too_large=True)
    if image.mode.startswith(_WIDE):
        raise BadInput(f"the picture has more than 8 bits a channel (mode {image.mode})")
    try:
        image.load()
        if spec["exif"]:
            image = ImageOps.exif_transpose(image)
        return _flat(image, spec)
    except MemoryError:
        raise
    except Exception:
        raise BadInput("the picture is damaged or cut off") from None


def _flat(image: Any, spec: Mapping[str, Any]) -> Any:
    from PIL import Image

    if spec["background"] is not None and image.has_transparency_data:
        above = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*spec["background"], 255))
        image = Image.alpha_composite(behind, above)
    return image if image.mode == spec["mode"] else image.convert(spec["mode"])


def _too_large(spec: Mapping[str, Any]) -> str:
    return f"a picture may have {spec['max_pixels']} pixels at most"
