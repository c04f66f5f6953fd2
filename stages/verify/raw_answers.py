"""A model's answers to raw input, by the whole path from file to label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from deploy_runner.sdk import StageError

from ..model.bundles import Bundle
from ..model.calibration import Slot
from ..model.compare import Model
from .raw_data import Sample

if TYPE_CHECKING:
    from ...server.raw import rawio

__all__ = ["Answer", "agree", "answering", "axes_of", "read", "score_difference"]

Inputs = Mapping[str, Any]
Answer = Callable[[Inputs], Any]
"""The model's inputs for one sample, as `read` returns them → what is answered."""


def read(io: rawio.RawIo, sample: Sample) -> Inputs:
    """Return the model's inputs for a sample. Raises StageError for one that can't be read."""
    from ...server.raw.problems import BadInput

    try:
        return io.arrays([sample.fields])
    except BadInput as error:
        raise StageError(f"{sample.place}: {error}") from None


def answering(run: Model, io: rawio.RawIo, slots: list[Slot], outputs: Mapping[str, int | None]) -> Answer:
    """Return a function that answers one sample as a server answers one request.

    `outputs` are the axes of the samples. A model with a fixed number of samples gets the same one several
    times.
    """
    import numpy as np

    known = {slot.name: slot for slot in slots}

    def answer(first: Inputs) -> Any:
        placed = {}
        for name, array in first.items():
            if known and name not in known:
                continue
            slot = known.get(name) or Slot(name, str(array.dtype), (None, *array.shape[1:]))
            if slot.batch is None:
                placed[name] = array if array.ndim == len(slot.shape) else array[0]
            else:
                repeated = np.repeat(array, slot.at_once, axis=0)
                placed[name] = np.ascontiguousarray(np.moveaxis(repeated, 0, slot.batch))
        found = run(placed)
        made = {name: np.moveaxis(array, outputs.get(name) or 0, 0) for name, array in found.items()}
        return io.answers({name: array[:1] for name, array in made.items()}, first)[0]

    return answer


def axes_of(bundle: Bundle) -> dict[str, int | None]:
    """Return the axis of the samples in each output."""
    return {port.name: port.batch for port in bundle.outputs}


def agree(theirs: Any, ours: Any, tolerance: float) -> bool:
    """Say whether two answers are the same: their predictions, or all of them where they have none.

    Numbers may differ by `tolerance` of the larger one.
    """
    from ..model.golden import same

    if isinstance(theirs, Mapping) and "prediction" in theirs and isinstance(ours, Mapping):
        theirs, ours = theirs["prediction"], ours.get("prediction")
    close = partial(_close, tolerance)
    return same(theirs, ours, close) and same(ours, theirs, close)


def _close(tolerance: float, theirs: float, ours: float) -> bool:
    return abs(theirs - ours) <= tolerance * max(abs(theirs), abs(ours))


def score_difference(theirs: Any, ours: Any) -> float:
    """Return how far the scores of classes that both answers list are apart."""
    scores = [_scores(answer) for answer in (theirs, ours)]
    return max((abs(scores[0][k] - scores[1][k]) for k in scores[0].keys() & scores[1].keys()), default=0.0)


def _scores(answer: Any) -> dict[Any, float]:
    classes = answer.get("classes", ()) if isinstance(answer, Mapping) else ()
    return {one["label"]: one["score"] for one in classes if "score" in one}
