"""A model's outputs to what is answered: labels, numbers, embeddings, boxes or masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .picture import GEOMETRY

__all__ = ["Answers"]


class Answers:
    """What a specification makes of outputs, the samples along axis 0 of each.

    `kind` says which form an answer has:

    - classes: {"prediction": label, "score": s, "classes": [{"label", "score"}, …]}, the `top` best by
      `activation` (softmax, sigmoid, none) of `output` [N, C], or [N, 1] of a single logit;
    - labels: {"prediction": [label, …], "classes": …}, all from `threshold` on;
    - number: {"prediction": x}, of [N], [N, 1] or, as a list, [N, …];
    - embedding: {"embedding": [x, …]}, of [N, D], or of [N, T, D] by `pooling` (mean, max, cls, last) over
      what `mask`, an input [N, T], doesn't hide; `normalize` makes its length 1;
    - boxes: {"objects": [{"label", "score", "box": [x0, y0, x1, y1]}, …]} of `boxes` [N, K, 4], `classes`
      [N, K] and `scores` [N, K], from `threshold` on; in pixels of the picture that was sent, upright, or
      of the model's input where there is none;
    - mask: {"size": [h, w], "classes": [{"label", "share"}, …], "png": base64} of `output` [N, C, H, W]:
      the picture has each pixel's class.

    `labels` are those of the classes by their place, None for the numbers themselves.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._names: Any = spec.get("labels")
        self._make: Callable[[Mapping[str, Any], Mapping[str, Any]], list[Any]] = {
            "classes": self._classes, "labels": self._labels, "number": self._number,
            "embedding": self._embedding, "boxes": self._boxes, "mask": self._mask,
        }[spec["kind"]]  # fmt: skip

    def __call__(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        """Return the answer of each sample."""
        return self._make(outputs, inputs)

    def _label(self, place: int) -> Any:
        named = self._names is not None and place < len(self._names)
        return self._names[place] if named else place

    def _scores(self, outputs: Mapping[str, Any]) -> Any:
        values = outputs[self._spec["output"]].astype(np.float64)
        values = values.reshape(len(values), -1)
        if values.shape[1] == 1 and self._spec["kind"] == "classes":
            second = _sigmoid(values) if self._spec["activation"] != "none" else values
            return np.concatenate([1 - second, second], axis=1)
        return _ACTIVATIONS[self._spec["activation"]](values)

    def _classes(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        answers = []
        for scores in self._scores(outputs):
            best = np.argsort(-scores, kind="stable")[: self._spec["top"]]
            found = [{"label": self._label(int(i)), "score": float(scores[i])} for i in best]
            answers.append({"prediction": found[0]["label"], "score": found[0]["score"], "classes": found})
        return answers

    def _labels(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        answers = []
        for scores in self._scores(outputs):
            kept = [
                int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= self._spec["threshold"]
            ]
            found = [{"label": self._label(i), "score": float(scores[i])} for i in kept]
            answers.append({"prediction": [one["label"] for one in found], "classes": found})
        return answers

    def _number(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        values = outputs[self._spec["output"]]
        return [{"prediction": one.item() if one.size == 1 else one.tolist()} for one in values]

    def _embedding(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        values = outputs[self._spec["output"]]
        if values.ndim == 3:
            mask = inputs.get(self._spec["mask"]) if self._spec["mask"] else None
            values = _POOLINGS[self._spec["pooling"]](
                values, np.ones(values.shape[:2]) if mask is None else mask
            )
        if self._spec["normalize"]:
            values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
        return [{"embedding": one.ravel().tolist()} for one in values]

    def _boxes(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        boxes, classes, scores = (outputs[self._spec[name]] for name in ("boxes", "classes", "scores"))
        if GEOMETRY in inputs:
            boxes = [_in_picture(one, place) for one, place in zip(boxes, inputs[GEOMETRY], strict=True)]
        answers = []
        for place in range(len(boxes)):
            order = np.argsort(-scores[place], kind="stable")
            kept = [int(i) for i in order if scores[place][i] >= self._spec["threshold"]]
            answers.append({"objects": [
                {"label": self._label(int(classes[place][i])), "score": float(scores[place][i]),
                 "box": [float(x) for x in boxes[place][i]]}
                for i in kept
            ]})  # fmt: skip
        return answers

    def _mask(self, outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
        from PIL import Image

        answers = []
        for values in outputs[self._spec["output"]]:
            places = values.argmax(0).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(places).save(file, "PNG")
            counts = np.bincount(places.ravel(), minlength=1)
            shares = [
                {"label": self._label(int(i)), "share": float(counts[i] / places.size)}
                for i in np.argsort(-counts, kind="stable")
                if counts[i]
            ]
            png = base64.b64encode(file.getvalue()).decode()
            answers.append({"size": list(places.shape), "classes": shares, "png": png})
        return answers


def _in_picture(boxes: Any, geometry: Any) -> Any:
    """Return boxes [K, 4] of the model's pixels in those of the picture, none beyond its edges."""
    left, top, across, down, width, height = geometry
    moved = (boxes + np.array([left, top, left, top])) * np.array([across, down, across, down])
    return np.clip(moved, 0, np.array([width, height, width, height]))


def _softmax(values: Any) -> Any:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _sigmoid(values: Any) -> Any:
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def _same(values: Any) -> Any:
    return values


_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {"softmax": _softmax, "sigmoid": _sigmoid, "none": _same}


def _mean(values: Any, mask: Any) -> Any:
    weights = mask[..., None].astype(values.dtype)
    return (values * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)


def _max(values: Any, mask: Any) -> Any:
    return np.where(mask[..., None] != 0, values, -np.inf).max(1)


def _first(values: Any, mask: Any) -> Any:
    return values[:, 0]


def _last(values: Any, mask: Any) -> Any:
    places = mask.shape[1] - 1 - (mask[:, ::-1] != 0).argmax(1)
    return values[np.arange(len(values)), places]


_POOLINGS: Mapping[str, Callable[[Any, Any], Any]] = {
    "mean": _mean,
    "max": _max,
    "cls": _first,
    "last": _last,
}
