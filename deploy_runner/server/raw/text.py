"""Texts to ids and masks, by a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .problems import BadInput

__all__ = ["FILE", "Text", "variants"]

FILE = "tokenizer.json"

Given = str | Sequence[str]
"""A text, or a pair of texts."""


class Text:
    """Texts, or pairs of texts, as a model's ids, attention mask and token types.

    The specification has: `ids`, `mask` and `types`, the names of the model's inputs (None: it has none);
    `dtype`; `max_length` in tokens, special ones included; `truncation`, how longer ones are shortened
    (longest_first, only_first, only_second; None: they are refused), from which `truncation_side`;
    `padding`, to the `longest` of a batch or to `max_length`, then to a multiple of `pad_to`, on which
    `padding_side`, with `pad_id`, `pad_token` and `pad_type`; `special_tokens`, whether they are added;
    `max_characters` of a text; `pairs`, whether one is two texts.
    """

    field = "text"

    def __init__(self, spec: Mapping[str, Any], folder: Path) -> None:
        from tokenizers import Tokenizer

        self._spec = spec
        parts = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}
        self._parts = [(spec[key], part) for key, part in parts.items() if spec[key] is not None]
        self._tokenizer = Tokenizer.from_file(str(folder / FILE))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if spec["truncation"] and not spec.get("cut"):
            self._tokenizer.enable_truncation(
                spec["max_length"], strategy=spec["truncation"], direction=spec["truncation_side"]
            )
        self._tokenizer.enable_padding(
            direction=spec["padding_side"], pad_id=spec["pad_id"], pad_type_id=spec["pad_type"],
            pad_token=spec["pad_token"], pad_to_multiple_of=spec["pad_to"],
            length=spec["max_length"] if spec["padding"] == "max_length" else None,
        )  # fmt: skip

    def arrays(self, given: Sequence[Given]) -> dict[str, Any]:
        """Return ids, mask and types [len(given), tokens]. Raises BadInput."""
        spec = self._spec
        texts = [self._checked(one) for one in given]
        try:
            found = self._tokenizer.encode_batch(texts, add_special_tokens=spec["special_tokens"])
        except Exception as error:  # Its library raises Exception itself.
            raise BadInput(f"a text can't be shortened to {spec['max_length']} tokens: {error}") from None
        if not len(found[0]):
            raise BadInput("a text is empty, and the model needs a token at least")
        if not spec["truncation"]:
            count = max(sum(one.attention_mask) for one in found)
            if count > spec["max_length"]:
                raise BadInput(f"a text has {count} tokens, the model takes {spec['max_length']} at most")
        arrays = {
            name: np.array([getattr(one, part) for one in found], dtype=spec["dtype"])
            for name, part in self._parts
        }
        if spec.get("cut"):
            return {name: array[:, : spec["max_length"]] for name, array in arrays.items()}
        return arrays

    def _checked(self, given: Given) -> Any:
        texts: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
        pair = self._spec["pairs"]
        if len(texts) != 1 + pair or not all(isinstance(text, str) for text in texts):
            raise BadInput("a sample is a pair of texts" if pair else "a sample is a single text")
        longest = max(map(len, texts)) if pair else len(texts[0])
        if longest > self._spec["max_characters"]:
            raise BadInput(
                f"a text has {longest} characters, {self._spec['max_characters']} are taken at most",
                too_large=True,
            )
        if self._spec.get("lower"):
            texts = [text.lower() for text in texts]
        try:
            for text in texts:
                text.isascii() or text.encode()
        except UnicodeEncodeError:
            raise BadInput("a text has half a surrogate pair, which is no character") from None
        return tuple(texts) if pair else texts[0]


def variants(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield a step, what code does that takes it otherwise, and the specification of that."""
    spec = dict(spec)
    if spec["special_tokens"]:
        yield "special_tokens", "adds no special tokens", {**spec, "special_tokens": False}
    else:
        yield "special_tokens", "adds special tokens", {**spec, "special_tokens": True}
    yield "truncation", "cuts the ids with the special tokens among them", {**spec, "cut": True}
    yield "text", "turns it into small letters first", {**spec, "lower": True}
    for length in (16, 32, 64, 128, 256, 512, 1024):
        if length != spec["max_length"]:
            shorter = {**spec, "max_length": length, "truncation": spec["truncation"] or "longest_first"}
            yield "max_length", f"takes {length} tokens at most", shorter
            yield "padding", f"pads to {length} tokens", {**shorter, "padding": "max_length"}
    if spec["padding"] == "longest":
        yield "padding", "pads to `max_length`", {**spec, "padding": "max_length"}
    other = {"left": "right", "right": "left"}
    for side in ("padding_side", "truncation_side"):
        yield side, f"does it on the {other[spec[side]]}", {**spec, side: other[spec[side]]}
