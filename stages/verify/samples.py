"""A sample → what a person recognises it by: a small picture, or its first values as a text."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["picture", "png", "values"]

_LARGEST = 128
"""Pixels on a side; of larger pictures every second, third, … pixel is taken."""
_SMALLEST = 4
_COLOURS = {1: 0, 3: 2}
"""Channels, and the colour type of PNG."""
_VALUES, _ARRAYS, _LETTERS = 8, 3, 80


def picture(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes | None:
    """Return the first input that is a picture as PNG; None if none is.

    A picture is one sample [1, channels, height, width] of floats, or [1, height, width, channels] of bytes,
    of 1, 3 or 4 channels. Floats are stretched from the smallest to black to the largest to white, because
    nobody knows how they were normalised; the fourth channel is left out.
    """
    for array in arrays.values():
        pixels = _pixels(array)
        if pixels is not None:
            return png(pixels)
    return None


def _pixels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return bytes by height, width and channel."""
    import numpy as np

    if array.ndim != 4 or array.shape[0] != 1 or (array.dtype.kind != "f" and array.dtype != np.uint8):
        return None
    whole = array[0] if array.dtype == np.uint8 else np.moveaxis(array[0], 0, -1)
    height, width, channels = whole.shape
    if channels not in (1, 3, 4) or min(height, width) < _SMALLEST:
        return None
    step = -(-max(height, width) // _LARGEST)
    found: np.ndarray[Any, Any] = whole[::step, ::step, : 3 if channels > 1 else 1]
    if found.dtype == np.uint8:
        return found
    found = np.nan_to_num(found.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(found.min()), float(found.max())
    scaled: np.ndarray[Any, Any] = ((found - low) * (255 / ((high - low) or 1)) + 0.5).astype(np.uint8)
    return scaled


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Return bytes by height, width and channel, of which there are 1 or 3, as a PNG file."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def values(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Return the first values of the first inputs: `x: 5.1, 3.5, 1.4, 0.2`."""
    shown = []
    for name, array in list(arrays.items())[:_ARRAYS]:
        left = array.size - _VALUES
        text = ", ".join(map(_shown, array.flat[:_VALUES]))
        shown.append(f"{name}: {text}" + (f" and {left:,} more" if left > 0 else ""))
    return "; ".join(shown)


def _shown(value: object) -> str:
    import numpy as np

    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)[:_LETTERS]
