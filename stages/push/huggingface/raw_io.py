"""What an io artifact adds to a repository: its files, the labels, the task, and how to ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...package import raw
from .placed import Placed

__all__ = ["files", "labels", "request", "task"]

_TOKENIZER = "tokenizer.json"
_TASKS = {
    ("picture", "classes"): "image-classification", ("picture", "labels"): "image-classification",
    ("picture", "boxes"): "object-detection", ("picture", "mask"): "image-segmentation",
    ("picture", "embedding"): "image-feature-extraction", ("text", "classes"): "text-classification",
    ("text", "labels"): "text-classification", ("text", "embedding"): "feature-extraction",
    ("sound", "classes"): "audio-classification", ("sound", "labels"): "audio-classification",
    ("row", "classes"): "tabular-classification", ("row", "labels"): "tabular-classification",
    ("row", "number"): "tabular-regression",
}  # fmt: skip
"""What a sample has, and the answer → the Hub's task: https://huggingface.co/tasks"""
_REQUESTS = {
    "picture": "curl http://127.0.0.1:8000/predict -H 'Content-Type: image/jpeg' --data-binary @picture.jpg",
    "sound": "curl http://127.0.0.1:8000/predict -H 'Content-Type: audio/wav' --data-binary @sound.wav",
    "text": "curl http://127.0.0.1:8000/predict -H 'Content-Type: text/plain' -d 'a text'",
}


def files(folder: Path) -> dict[str, Placed]:
    """Return an artifact's files by their path; a tokenizer at the top as well, where other clients look."""
    tokenizer = folder / _TOKENIZER
    found = raw.files(folder) | ({_TOKENIZER: tokenizer} if tokenizer.is_file() else {})
    return {path: Placed(file, "io") for path, file in found.items()}


def labels(io: Mapping[str, Any] | None) -> list[str]:
    """Return the labels of the answer in order, nothing where it has none."""
    return [str(name) for name in (io["answer"].get("labels") if io else None) or []]


def task(io: Mapping[str, Any] | None) -> str | None:
    """Return the Hub's task, None where a sample or an answer is of another kind."""
    kinds = _kinds(io) if io else []
    return _TASKS.get((kinds[0], io["answer"].get("kind", ""))) if io and len(kinds) == 1 else None


def request(io: Mapping[str, Any]) -> str:
    """Return how a model is asked that is served."""
    kinds = _kinds(io)
    if len(kinds) == 1 and kinds[0] in _REQUESTS:
        return f"```shell\n{_REQUESTS[kinds[0]]}\n```\n"
    return "http://127.0.0.1:8000 has a page to try it, and `/openapi.json` describes the requests.\n"


def _kinds(io: Mapping[str, Any]) -> list[str]:
    return [kind for kind in ("picture", "text", "sound", "row", "python") if kind in io]
