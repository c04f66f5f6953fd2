"""A small network that knows eleven languages by the pieces of their words."""

from __future__ import annotations

from torch import Tensor, nn

VOCABULARY = 1200
LANGUAGES = ("de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv", "tr")


class Languages(nn.Module):
    """Ids of pieces (batch, sequence) to logits (batch, 11): the mean of their vectors, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 48)
        self.layers = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, len(LANGUAGES))
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        logits: Tensor = self.layers(mean)
        return logits


def build() -> nn.Module:
    return Languages()
