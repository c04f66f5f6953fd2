"""A model of transformers as a module that takes and returns named tensors.

The bundle carries a copy of this file, by which it builds the module again: it imports nothing but torch
and transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

_LEFT_OUT = frozenset(
    ("loss", "past_key_values", "encoder_last_hidden_state", "text_model_output", "vision_model_output")
)
_TOWERS = {"text": ("vision_model", "visual_projection"), "image": ("text_model", "text_projection")}


class Net(nn.Module):
    """A model, or one part of it, without what only training or the next token needs."""

    def __init__(self, model: nn.Module, part: str | None, pooling: Mapping[str, bool] | None) -> None:
        super().__init__()
        self.part = part
        self.pooling = pooling
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors of the model's result by name, pooled where that was asked for."""
        found = self._result(inputs)
        if isinstance(found, torch.Tensor):
            return {"embeds": found}
        kept = {name: value for name, value in found.items()
                if isinstance(value, torch.Tensor) and name not in _LEFT_OUT}  # fmt: skip
        if self.pooling is None:
            return kept
        return {"sentence_embedding": _pooled(kept["last_hidden_state"], inputs, self.pooling)}

    def _result(self, inputs: dict[str, torch.Tensor]) -> Any:
        if self.part == "with_past":
            return self._next(inputs)
        if self.part == "text":
            return self._embeds(self.model.get_text_features(**inputs))  # type: ignore[operator]
        if self.part == "image":
            return self._embeds(self.model.get_image_features(**inputs))  # type: ignore[operator]
        if self.part == "decoder":
            states = inputs.pop("encoder_hidden_states")
            encoded = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=states)
            return self.model(encoder_outputs=encoded, return_dict=True, **inputs)
        return self.model(return_dict=True, **inputs)

    def _next(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Continue a text: the keys and values of what came before go in, those of all come out."""
        cache: Any = transformers.DynamicCache()
        for layer in range(sum(name.endswith("_key") for name in inputs)):
            key, value = (inputs.pop(f"past_key_values_{layer}_{name}") for name in ("key", "value"))
            cache.update(key, value, layer)
        # Its name since transformers 5.24, and before.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        found = self.model(use_cache=True, return_dict=True, **{name: cache}, **inputs)
        result = {"logits": found.logits}
        for layer, kept in enumerate(cache.layers):
            result |= {f"present_{layer}_key": kept.keys, f"present_{layer}_value": kept.values}
        return result

    @staticmethod
    def _embeds(found: Any) -> torch.Tensor:
        embeds: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
        return embeds


def _pooled(
    states: torch.Tensor, inputs: Mapping[str, torch.Tensor], pooling: Mapping[str, bool]
) -> torch.Tensor:
    """Pool the states of the tokens that the mask keeps as sentence-transformers does: [B, S, D] → [B, D]."""
    mask = inputs["attention_mask"][..., None].to(states.dtype)
    if pooling.get("cls"):
        pooled = states[:, 0]
    elif pooling.get("max"):
        pooled = states.masked_fill(mask == 0, -1e9).amax(1)
    else:
        pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return nn.functional.normalize(pooled, p=2, dim=1) if pooling.get("normalize") else pooled


def build(
    architecture: str,
    config: Mapping[str, Any],
    part: str | None = None,
    pooling: Mapping[str, bool] | None = None,
) -> Net:
    """Return the module of a class of transformers, with random weights, in float32."""
    kind = getattr(transformers, architecture)
    settings = kind.config_class.from_dict(dict(config))
    return Net(taken(kind(settings), part), part, pooling)


def taken(model: nn.Module, part: str | None) -> nn.Module:
    """Return what a part needs of a model: the encoder, or the model without its other tower."""
    if part == "encoder":
        encoder: nn.Module = model.get_encoder()  # type: ignore[operator]
        return encoder
    for name in _TOWERS.get(part or "", ()):
        if hasattr(model, name):
            delattr(model, name)
    return model
