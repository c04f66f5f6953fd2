"""Find an input that a module takes: by its first layer, by the names of its arguments, by running it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deploy_runner.sdk import StageError, first_line

from ..model import calls
from ..model.bundles import Port
from ..model.examples import Example, noise
from ..model.flattening import flatten_outputs

if TYPE_CHECKING:
    from torch import nn

_WORDS = re.compile(r"(^|_)(ids?|tokens?|idx|words?|text|input_ids|src|tgt)($|_)")
_LIKE_WORDS = re.compile(r"(^|_)(mask|masks|position_ids|token_type_ids|segment_ids)($|_)")
_LENGTHS = re.compile(r"(^|_)(lengths?|lens?)($|_)")
_SIDES = (224, 32, 28, 64, 8, 128, 256, 299, 384, 512, 16, 48, 96, 160, 192, 320, 112, 14, 20, 24, 40, 50, 60,
          80, 84, 100, 120, 150, 200, 240, 300, 331, 400, 416, 448, 480, 640)  # fmt: skip
"""Usual sides of pictures, the most usual first; where none fits, all to _MOST_SIDE are tried."""
_LENGTHS_1D = (
    16000,
    1024,
    128,
    100,
    256,
    512,
    64,
    32,
    50,
    200,
    300,
    500,
    1000,
    2048,
    4096,
    8000,
    22050,
    48000,
)
_MOST_SIDE = 128
_SEQUENCE = 16
_MOST_S = 40.0


class FirstInput(NamedTuple):
    """What model.prepare takes as `example` and `dynamic`, the inputs' names, the outputs' shapes."""

    names: list[str]
    example: dict[str, Any]
    dynamic: dict[str, dict[str, str]] | None
    outputs: dict[str, list[int]]


class _Guess(NamedTuple):
    """A shape of the first input, its type and what its axes are called (None: the batch is first)."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int | None = None
    axes: dict[int, str] | None = None

    @property
    def batch(self) -> int:
        """The axis of the samples."""
        return next((axis for axis, name in (self.axes or {}).items() if name == "batch"), 0)


def found(module: nn.Module, shape: Sequence[int] | None) -> FirstInput | None:
    """Return the first guess with which the module runs for a batch of one and of two, or for one alone.

    None where it runs with none. With `shape` only guesses of this shape count; raises StageError where
    none runs.
    """
    names = _required(module)
    end = time.monotonic() + _MOST_S
    error: StageError | None = None
    alone: FirstInput | None = None
    for guess in _guesses(module, names) if shape is None else _of_shape(module, names, shape):
        if time.monotonic() > end:
            break
        example = _examples(names, guess)
        given = {n: e.model_dump(exclude_defaults=True) | {"shape": e.shape} for n, e in example.items()}
        written = next(iter(given.values())) if len(given) == 1 else given
        try:
            outputs = _run(module, example, guess, 1)
            alone = alone or FirstInput(list(given), written, {}, outputs)
            if _run(module, example, guess, 2).keys() == outputs.keys():
                return FirstInput(list(given), written, _dynamic(example, guess), outputs)
        except StageError as refused:
            error = error or refused
    if alone is None and shape is not None and error is not None:
        raise error
    return alone


def _required(module: nn.Module) -> list[str]:
    """Return the names of the arguments that forward() can't do without, or of its first."""
    names = calls.arguments(module)
    needed: list[str] = []
    for name in names:
        try:
            calls.bind(module, needed or names[:1])
        except StageError:
            needed = names[: names.index(name) + 1]
        else:
            break
    return needed or names[:1] or ["input"]


def _guesses(module: nn.Module, names: Sequence[str]) -> Iterator[_Guess]:
    from torch import nn

    first = _first_layer(module)
    match first:
        case nn.Embedding():
            yield from _words(first.num_embeddings)
        case nn.Conv2d() | nn.ConvTranspose2d():
            sides = (*_preferred(module), *_SIDES, *range(1, _MOST_SIDE))
            yield from (_Guess((1, first.in_channels, side, side)) for side in dict.fromkeys(sides))
        case nn.Conv1d() | nn.ConvTranspose1d():
            lengths = (*_LENGTHS_1D, *range(1, _MOST_SIDE))
            yield from (_Guess((1, first.in_channels, n)) for n in dict.fromkeys(lengths))
        case nn.Conv3d():
            for frames, side in ((16, 112), (8, 64), (16, 64), (32, 32), (64, 64), (16, 16)):
                yield _Guess((1, first.in_channels, frames, side, side))
        case nn.RNNBase():
            yield _sequence(first.input_size, batch_first=first.batch_first)
        case nn.Linear():
            yield _Guess((1, first.in_features))
            yield _sequence(first.in_features)
        case nn.LayerNorm():
            yield _sequence(first.normalized_shape[-1])
        case nn.modules.batchnorm._BatchNorm():
            yield _Guess((1, first.num_features))
    if first is None:
        yield from _of_weights([tuple(tensor.shape) for tensor in module.state_dict().values()])
    if _WORDS.search(names[0]):
        yield from _words(100)
    yield from (_Guess((1, size)) for size in (*range(1, 65), 100, 128, 256, 512, 784, 1024))


def _of_weights(shapes: Sequence[tuple[int, ...]]) -> Iterator[_Guess]:
    """Yield guesses for a program, which has no layers: by the shape of its first weight that has axes."""
    first = next((shape for shape in shapes if len(shape) > 1), ())
    if len(first) == 4:
        yield from (_Guess((1, first[1], side, side)) for side in _SIDES)
    elif len(first) == 3:
        yield from (_Guess((1, first[1], length)) for length in _LENGTHS_1D)
    elif first:
        yield _Guess((1, first[1]))
        yield _sequence(first[1])
        yield from _words(first[0])


def _of_shape(module: nn.Module, names: Sequence[str], shape: Sequence[int]) -> Iterator[_Guess]:
    """Yield guesses of one shape, of the type that the first layer takes before the other."""
    from torch import nn

    first = _first_layer(module)
    words = _Guess(tuple(shape), "int64", first.num_embeddings if isinstance(first, nn.Embedding) else 100)
    numbers = _Guess(tuple(shape))
    yield from (words, numbers) if isinstance(first, nn.Embedding) else (numbers, words)


def _first_layer(module: nn.Module) -> nn.Module | None:
    """Return the first layer whose weights tell what input it takes."""
    from torch import nn

    kinds = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
             nn.RNNBase, nn.Linear, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)  # fmt: skip
    return next((layer for layer in module.modules() if isinstance(layer, kinds)), None)


def _preferred(module: nn.Module) -> Iterator[int]:
    """Yield the side that timm's models say they were trained for."""
    said = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    size = said.get("input_size") if isinstance(said, Mapping) else None
    if isinstance(size, (tuple, list)) and len(size) == 3:
        yield int(size[-1])


def _words(count: int) -> Iterator[_Guess]:
    for axes in ({0: "batch", 1: "sequence"}, {0: "sequence", 1: "batch"}):
        yield _Guess((1, _SEQUENCE) if axes[0] == "batch" else (_SEQUENCE, 1), "int64", count, axes)
    yield _Guess((1,), "int64", count)


def _sequence(width: int, *, batch_first: bool = True) -> _Guess:
    if batch_first:
        return _Guess((1, _SEQUENCE, width), axes={0: "batch", 1: "sequence"})
    return _Guess((_SEQUENCE, 1, width), axes={0: "sequence", 1: "batch"})


def _examples(names: Sequence[str], guess: _Guess) -> dict[str, Example]:
    """Return an example for each argument: what isn't known by its name is like the first."""
    batch = guess.batch
    made = {}
    for position, name in enumerate(names):
        if position and _LENGTHS.search(name):
            made[name] = Example(shape=[guess.shape[batch]] if guess.shape else [], dtype="int64")
        elif position and _LIKE_WORDS.search(name) and guess.dtype == "int64":
            made[name] = Example(shape=list(guess.shape), dtype="int64")
        else:
            made[name] = Example(shape=list(guess.shape), dtype=guess.dtype, high=guess.high)  # type: ignore[arg-type]
    return made


def _run(module: nn.Module, example: Mapping[str, Example], guess: _Guess, size: int) -> dict[str, list[int]]:
    """Run it with a batch of this size; return the outputs' shapes. Raises StageError where it refuses."""
    import torch

    batch = guess.batch
    arrays = {}
    for name, given in example.items():
        axis = batch if len(given.shape) == len(guess.shape) else 0
        shape = [size if at == axis else n for at, n in enumerate(given.shape)]
        longest = guess.shape[1 - batch] if len(guess.shape) > 1 else 1
        port = Port(name, given.dtype, tuple(shape), {}, axis if shape else None)
        arrays[name] = torch.from_numpy(noise(port, given, shape, (0, size), longest))
    try:
        with torch.no_grad():
            outputs = flatten_outputs(calls.call(module, arrays))
    except Exception as error:
        said = f"forward() refuses shape {list(guess.shape)}: {first_line(error)}"
        raise StageError(said, fix="name the shape that it takes") from error
    return {name: list(tensor.shape) for name, tensor in outputs.items()}


def _dynamic(example: Mapping[str, Example], guess: _Guess) -> dict[str, dict[str, str]] | None:
    if guess.axes is None:
        return None
    found = {}
    for name, given in example.items():
        axes = guess.axes if len(given.shape) == len(guess.shape) else {0: "batch"}
        found[name] = {str(axis): label for axis, label in axes.items()}
    return found
