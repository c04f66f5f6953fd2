"""How alike two pictures are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WINDOW = 8
Picture = NDArray[np.float32]


def ssim(outputs: Picture, labels: Picture) -> float:
    """Return the structural similarity, 1 if equal (Wang et al. 2004), in windows of 8 x 8 pixels."""
    first, second = _windows(outputs), _windows(labels)
    a, b = first.mean(-1), second.mean(-1)
    covariance = ((first - a[..., None]) * (second - b[..., None])).mean(-1)
    alike = (2 * a * b + 1e-4) * (2 * covariance + 9e-4)
    return float((alike / ((a**2 + b**2 + 1e-4) * (first.var(-1) + second.var(-1) + 9e-4))).mean())


def _windows(pictures: Picture) -> NDArray[np.float64]:
    batch, channels, height, width = pictures.shape
    cut = pictures.reshape(batch, channels, height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    rows: NDArray[np.float64] = cut.swapaxes(3, 4).reshape(*cut.shape[:3], width // WINDOW, -1).astype(float)
    return rows
