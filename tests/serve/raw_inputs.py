"""Pictures, sounds, a tokenizer, and models that take them, made from seeds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "CLASSES",
    "PICTURES",
    "ROWS",
    "SEER",
    "TABLE",
    "declared",
    "encoded",
    "picture",
    "picture_spec",
    "recorded",
    "sound_file",
    "tokenizer",
]

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLASSES: dict[str, Any] = {
    "kind": "classes",
    "output": "shares",
    "labels": ["red", "<green>", "blue"],
    "top": 3,
    "activation": "softmax",
}
"""The answer of models.colours."""
_COLUMN: dict[str, Any] = {
    "vocabulary": None,
    "unknown": None,
    "missing": None,
    "mean": None,
    "std": None,
    "kind": "number",
}
TABLE: dict[str, Any] = {
    "columns": [
        {**_COLUMN, "name": "size"},
        {**_COLUMN, "name": "kind", "kind": "category", "vocabulary": ["it's", 7]},
        {**_COLUMN, "name": "heavy", "kind": "flag", "missing": False},
        {**_COLUMN, "name": "other"},
    ],
    "tensors": {
        "weights": {"dtype": "float32", "columns": ["size", "other"], "shape": "columns"},
        "ids": {"dtype": "int64", "columns": ["kind", "heavy"], "shape": "columns"},
    },
}
"""The rows of models.scorer."""


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a picture with waves and noise, so that every way to resize it gives something else."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(width * height).normal(0, 20, (4, height, width))
    waves = [(np.sin(x / 7 + i) + np.cos(y / (5 + i))) * 60 + 128 + noise[i] for i in range(4)]
    pixels = np.stack(waves, -1).clip(0, 255).astype(np.uint8)
    if mode == "RGBA":
        return Image.fromarray(pixels, "RGBA")
    colours = Image.fromarray(pixels[..., :3])
    return colours if mode == "RGB" else colours.convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return a picture as a file's bytes."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture_spec(**changed: Any) -> dict[str, Any]:
    """Return the specification of the usual evaluation transform."""
    return {
        "tensor": "x", "mode": "RGB", "exif": True, "background": None, "resize": {"shortest": 72},
        "interpolation": "bilinear", "crop": [64, 64], "scale": {"divide": 255}, "mean": MEAN, "std": STD,
        "channels": "RGB", "layout": "CHW", "dtype": "float32", "max_pixels": 1_000_000, **changed,
    }  # fmt: skip


def tokenizer(file: Path) -> None:
    """Train a small WordPiece tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    made.train_from_iterator(
        ["the film was good", "a bad film, it was dull", "nothing happens here"] * 5, trainer
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(file))


def recorded(place: int, rate: int, form: str) -> bytes:
    """Return a low tone, a high one or noise, of two channels, of another length each."""
    rng = np.random.default_rng(place)
    time = np.arange(int(rate * (0.7 + 0.05 * place))) / rate
    wave = [np.sin(time * 2 * np.pi * (200 + place)), np.sin(time * 2 * np.pi * (3000 + 20 * place)),
            rng.normal(0, 0.4, len(time))][place % 3]  # fmt: skip
    return sound_file(np.stack([wave * 0.5, wave * 0.3], 1), rate, form)


def sound_file(wave: Any, rate: int, form: str, subtype: str | None = None) -> bytes:
    """Return a sound as a file's bytes."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, subtype=subtype)
    return file.getvalue()


PICTURES: dict[str, Any] = {
    "picture": picture_spec(resize={"size": [8, 8]}, crop=None, mean=None, std=None), "answer": CLASSES,
}  # fmt: skip
ROWS: dict[str, Any] = {"row": TABLE, "answer": {"kind": "number", "output": "score"}}
"""What models.colours and models.scorer take and answer."""


SEER = """
import torch
from torch import nn

class Seer(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                                  nn.Linear(32, 3))

    def forward(self, x):
        return self.body(x)
"""
"""A small net of pictures `x`, float32 [N, 3, H, W], as the code of a training has it."""


def declared(folder: Path, **spec: Any) -> Path:
    """Write an io.json."""
    folder.mkdir()
    (folder / "io.json").write_text(json.dumps({"version": 1, "requirements": [], **spec}))
    return folder
