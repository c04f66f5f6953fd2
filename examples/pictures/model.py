"""A small network that makes photographs twice as large, sharper than by interpolation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Enlarge(nn.Module):
    """Pictures (batch, 3, height, width) from 0 to 1 to pictures (batch, 3, 2 height, 2 width)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, padding=2), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, picture: Tensor) -> Tensor:
        blurred = functional.interpolate(picture, scale_factor=2.0, mode="bilinear", align_corners=False)
        return blurred + self.layers(picture)


def build() -> nn.Module:
    return Enlarge()
