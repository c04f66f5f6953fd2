"""A small convolutional network that hears which drum was hit."""

from __future__ import annotations

from torch import Tensor, nn

KINDS = ("cymbal", "hihat", "kick", "snare", "tom")


def _block(few: int, many: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(few, many, 3, padding=1), nn.BatchNorm2d(many), nn.ReLU(), nn.MaxPool2d(2))


class Drums(nn.Module):
    """Log-mel spectrograms (batch, 40, 35) to logits (batch, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(1, 16), _block(16, 32), _block(32, 48))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(48, len(KINDS)))

    def forward(self, mel: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(mel[:, None]).mean((2, 3)))
        return logits


def build() -> nn.Module:
    return Drums()
