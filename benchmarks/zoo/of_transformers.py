"""Configurations of transformers: the folders of tests/models/hub.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .entries import Entry, Given, Sizes

__all__ = ["ENTRIES"]

_LENGTH: Mapping[str, Sizes] = {"sequence": (12, 9, 19), "decoder_sequence": (6, 4, 9)}
_IDS = Given(("batch", "sequence"), "int64", 5, 90)
_MASK = Given(("batch", "sequence"), "int64", fill="mask")
_TEXT = {"input_ids": _IDS, "attention_mask": _MASK}
_WORDS = {"decoder_input_ids": Given(("batch", "decoder_sequence"), "int64", 5, 90)}
_SOUND = {"input_values": Given(("batch", "length"))}


def _pictures(*size: int | str) -> dict[str, Given]:
    return {"pixel_values": Given(("batch", 3, *size))}


_TEXTS = ["albert", "bert", "bert-fill", "deberta", "distilbert", "gpt2", "llama",
          "mpnet", "qwen2", "roberta"]  # fmt: skip
_FREE = _pictures("height", "width")
_AREA: Mapping[str, Sizes] = {"height": (64, 96, 128), "width": (64, 128, 96)}
_OTHERS: dict[str, tuple[dict[str, Given], Mapping[str, Sizes]]] = {
    "ast": ({"input_values": Given(("batch", 64, 32))}, {}),
    "bart": (_TEXT | _WORDS, _LENGTH),
    "clip": (_TEXT | _pictures(32, 32), _LENGTH),
    "convnext": (_FREE, _AREA),
    "dinov2": (_FREE, {"height": (32, 64, 96), "width": (32, 96, 64)}),
    "segformer": (_FREE, _AREA),
    "swin": (_pictures(64, 64), {}),
    "t5": (_TEXT | _WORDS, _LENGTH),
    "vit": (_pictures(32, 32), {}),
    "wav2vec2": (_SOUND, {"length": (16000, 9000, 20000)}),
    "whisper": ({"input_features": Given(("batch", 8, 40))} | _WORDS, _LENGTH),
    "yolos": (_pictures(64, 64), {}),
}
_PARAMS: dict[str, dict[str, Any]] = {"swin": {"fixed": ["height", "width"]}}


def _entry(name: str, inputs: Mapping[str, Given], sizes: Mapping[str, Sizes]) -> Entry:
    return Entry(
        f"transformers/{name}", "transformers", inputs, sizes=sizes, folder=name, params=_PARAMS.get(name, {})
    )


ENTRIES = [
    *(_entry(name, _TEXT, _LENGTH) for name in _TEXTS),
    *(_entry(name, inputs, sizes) for name, (inputs, sizes) in _OTHERS.items()),
]
