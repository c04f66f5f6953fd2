"""What a model of transformers takes: its inputs, with example values and the axes that may vary."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError, closest

from .axes import Axis, axis_of
from .bundles import Port
from .examples import Example

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Given", "given_inputs", "held", "ports_and_axes", "with_free_sizes"]

BATCH = "batch"
CAUSAL = ("CausalLM", "LMHeadModel")
"""What the names of language models end in."""
_ROWS, _TOKENS, _WORDS, _PIXELS, _SECOND = 2, 16, 6, 224, 16000
_POOLED_AT_EOS = frozenset(("clip", "clip_text_model", "clipseg", "altclip"))
"""They take the state at the end token, which has to be among the ids."""
_POSITIONS = re.compile(r"(?:position\w*|wpe)$")
_STEPS = (32, 64)
"""By how much the pixels are increased to see whether a model takes pictures of other sizes."""


@dataclass(frozen=True, slots=True)
class Given:
    """One input: its name, its example, and the axes that may vary."""

    name: str
    example: Example
    axes: dict[int, Axis]


def ports_and_axes(given: list[Given]) -> tuple[list[tuple[Port, Example]], dict[str, Axis]]:
    """Return the inputs as ports with their examples, and the axes by their labels."""
    ports = []
    axes: dict[str, Axis] = {}
    for one in given:
        labels = {axis: found.label for axis, found in one.axes.items()}
        batch = axis_of(labels, BATCH)
        ports.append(
            (Port(one.name, one.example.dtype, tuple(one.example.shape), labels, batch), one.example)
        )
        axes |= {found.label: found for found in one.axes.values()}
    return ports, dict(sorted(axes.items()))


def held(given: list[Given], fixed: Sequence[str]) -> list[Given]:
    """Return the inputs with the axes of these labels fixed. Raises StageError for one that there isn't."""
    known = {axis.label for one in given for axis in one.axes.values()}
    for label in fixed:
        if label not in known:
            raise StageError(f"fixed: no axis is called {label!r}; there are {', '.join(sorted(known))}",
                             fix=closest(label, known))  # fmt: skip
    return [
        Given(one.name, one.example, {n: axis for n, axis in one.axes.items() if axis.label not in fixed})
        for one in given
    ]


def given_inputs(model: nn.Module, part: str | None, settings: dict[str, Any]) -> list[Given]:
    """Return the inputs of a model, or of a part of it; `settings` are those of its preprocessor.

    Raises StageError for a model whose inputs are of no known kind.
    """
    config: Any = model.config
    arguments = inspect.signature(model.forward).parameters
    if part == "decoder":
        return [*_states(config), *_words(config)]
    if part == "with_past":
        return [*_words(config, "input_ids", "sequence"), *_past(config)]
    main = {"text": "input_ids", "image": "pixel_values"}.get(part or "", str(model.main_input_name))
    taken = {main} | ({"input_ids", "pixel_values"} & set(arguments) if part is None else set())
    found: list[Given] = []
    if "input_ids" in taken:
        found += _text(model, config, arguments)
    if "pixel_values" in taken:
        found += _pictures(config, settings)
    if main in ("input_values", "input_features"):
        found += _sound(config, main, settings)
    if not found:
        raise StageError(f"the inputs of {type(model).__name__} are not known: it takes {main}",
                         fix="use model.prepare, with a factory that builds the model")  # fmt: skip
    if part is None and "decoder_input_ids" in arguments and config.is_encoder_decoder:
        found += _words(config)
    return found


def _text(model: nn.Module, config: Any, arguments: Any) -> Iterator[Given]:
    texts = config.get_text_config()
    axis = Axis("sequence", max=_longest(model))
    shape = [_ROWS, min(_TOKENS, axis.max or _TOKENS)]
    low, high = _ids(texts)
    axes = {0: Axis(BATCH), 1: axis}
    yield Given("input_ids", Example(shape=shape, dtype="int64", low=low, high=high), axes)
    if "attention_mask" in arguments:
        causal = type(model).__name__.endswith(CAUSAL)
        # Padding on the right changes nothing before it in a causal model: a lost mask would not be seen.
        fill = "gaps" if causal else "mask"
        yield Given("attention_mask", Example(shape=shape, dtype="int64", fill=fill), axes)  # type: ignore[arg-type]
    kinds = getattr(texts, "type_vocab_size", None) or 0
    if "token_type_ids" in arguments and kinds > 1:
        yield Given("token_type_ids", Example(shape=shape, dtype="int64", high=kinds), axes)


def _longest(model: nn.Module) -> int | None:
    """Return how many positions the model has embeddings for, None where it computes them."""
    from torch import nn

    found = [
        part.num_embeddings - getattr(part, "offset", 0 if part.padding_idx is None else part.padding_idx + 1)
        for name, part in model.named_modules()
        if isinstance(part, nn.Embedding) and _POSITIONS.search(name) and "vision" not in name
    ]
    absolute = [size for size in found if size > 1]
    return min(absolute, default=None) if not getattr(model.config, "relative_attention", False) else None


def _ids(config: Any) -> tuple[int, int]:
    """Return the smallest id of an ordinary token, and the number above the largest."""
    vocabulary = int(config.vocab_size)
    special = [
        value
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
        if isinstance(value := getattr(config, name, None), int) and 0 <= value < vocabulary
    ]
    eos = getattr(config, "eos_token_id", None)
    if config.model_type in _POOLED_AT_EOS and isinstance(eos, int):
        eos = vocabulary - 1 if eos == 2 else eos  # Old configurations say 2, and mean the largest id.
        return max(0, min(eos, vocabulary - 1) - 7), min(eos, vocabulary - 1) + 1
    low = max([n for n in special if n < vocabulary // 2], default=-1) + 1
    return low, min([n for n in special if n >= vocabulary // 2], default=vocabulary)


def _words(config: Any, name: str = "decoder_input_ids", label: str = "decoder_sequence") -> Iterator[Given]:
    low, high = _ids(config.get_text_config(decoder=True))
    example = Example(shape=[_ROWS, _WORDS], dtype="int64", low=low, high=high)
    yield Given(name, example, {0: Axis(BATCH), 1: Axis(label)})


def _states(config: Any) -> Iterator[Given]:
    """Yield what the decoder takes of the encoder."""
    long = getattr(config, "max_source_positions", None)
    axes = {0: Axis(BATCH)} | ({} if long else {1: Axis("sequence")})
    shape = [_ROWS, long or _TOKENS, config.hidden_size]
    if not long:
        yield Given("attention_mask", Example(shape=shape[:2], dtype="int64", fill="mask"), axes)
    yield Given("encoder_hidden_states", Example(shape=shape), axes)


def _past(config: Any) -> Iterator[Given]:
    """Yield the keys and values of the tokens that came before, for each layer."""
    texts = config.get_text_config()
    heads = getattr(texts, "num_key_value_heads", None) or texts.num_attention_heads
    size = getattr(texts, "head_dim", None) or texts.hidden_size // texts.num_attention_heads
    axes = {0: Axis(BATCH), 2: Axis("past")}
    for layer in range(texts.num_hidden_layers):
        for name in ("key", "value"):
            yield Given(f"past_key_values_{layer}_{name}", Example(shape=[_ROWS, heads, _WORDS, size]), axes)


def _pictures(config: Any, settings: dict[str, Any]) -> Iterator[Given]:
    sight = getattr(config, "vision_config", config)
    size = getattr(sight, "image_size", None) or _size_in(settings) or _PIXELS
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape = [_ROWS, getattr(sight, "num_channels", 3), height, width]
    yield Given("pixel_values", Example(shape=shape), {0: Axis(BATCH)})


def _size_in(settings: dict[str, Any]) -> Any:
    """Return the size that an image processor makes pictures of."""
    for name in ("crop_size", "size"):
        size = settings.get(name)
        if isinstance(size, int):
            return size
        if isinstance(size, dict) and isinstance(size.get("height"), int):
            return size["height"], size["width"]
        if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int):
            return size["shortest_edge"]
    return None


def _sound(config: Any, main: str, settings: dict[str, Any]) -> Iterator[Given]:
    if main == "input_features" and hasattr(config, "max_source_positions"):
        shape = [_ROWS, config.num_mel_bins, 2 * config.max_source_positions]
        yield Given(main, Example(shape=shape), {0: Axis(BATCH)})
    elif main == "input_values" and hasattr(config, "num_mel_bins"):
        shape = [_ROWS, config.max_length, config.num_mel_bins]
        yield Given(main, Example(shape=shape), {0: Axis(BATCH)})
    elif main == "input_values":
        shape, axes = [_ROWS, _SECOND], {0: Axis(BATCH), 1: Axis("length", min=400)}
        yield Given(main, Example(shape=shape), axes)
        if settings.get("return_attention_mask"):
            yield Given("attention_mask", Example(shape=shape, dtype="int64", fill="mask"), axes)
    else:
        raise StageError(f"the inputs of {config.model_type} are not known: it takes {main}",
                         fix="use model.prepare, with a factory that builds the model")  # fmt: skip


def with_free_sizes(net: nn.Module, given: list[Given]) -> list[Given]:
    """Return the inputs, with the height and width of pictures as axes where the model takes other sizes."""
    import torch

    if [one.name for one in given] != ["pixel_values"]:
        return given
    shape = given[0].example.shape
    for step in _STEPS:
        try:
            with torch.no_grad():
                net(pixel_values=torch.zeros(shape[0], shape[1], shape[2] + step, shape[3] + step))
        except Exception:  # Each model has words of its own for a size that it doesn't take.
            return given
    axes = {**given[0].axes, 2: Axis("height"), 3: Axis("width")}
    return [Given("pixel_values", given[0].example, axes)]
