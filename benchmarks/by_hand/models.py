"""The models of the export benchmark: a picture net, a text net of two dynamic axes, and 1 GB of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def resnet50() -> nn.Module:
    """Return torchvision's ResNet-50."""
    from torchvision.models import resnet50 as build

    module: nn.Module = build(weights=None)
    return module


class Bert(nn.Module):
    """A BERT-base of random weights, which returns tensors."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig(attn_implementation="eager"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden state and the pooled one."""
        found: Any = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return found.last_hidden_state, found.pooler_output


def linear() -> nn.Module:
    """Return 64 layers of 2048 x 2048: 1 GB."""
    return nn.Sequential(*[part for _ in range(64) for part in (nn.Linear(2048, 2048), nn.ReLU())])


def example(name: str) -> dict[str, Tensor]:
    """Return inputs by name, a batch of two."""
    torch.manual_seed(0)
    if name == "Bert":
        ids = torch.randint(0, 30000, (2, 32))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"x": torch.randn(2, 3, 224, 224)} if name == "resnet50" else {"input": torch.randn(2, 2048)}


EXAMPLES: dict[str, dict[str, Any]] = {
    "resnet50": {"example": {"x": {"shape": [2, 3, 224, 224]}}},
    "Bert": {
        "example": {
            "input_ids": {"shape": [2, 32], "dtype": "int64", "high": 30000},
            "attention_mask": {"shape": [2, 32], "dtype": "int64", "low": 1, "high": 2},
        },
        "dynamic": {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")},
    },
    "linear": {"example": {"input": {"shape": [2, 2048]}}},
}
"""The same as parameters of model.prepare, by the name of the factory."""
