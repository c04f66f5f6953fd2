"""The record of a run → what one reads first: three sentences and three figures, as plain data.

What was made and for which target; what was chosen and why; what failed or was rejected and why. The page,
the job summary and the terminal show the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..engine.runs import RunRecord
from ..errors import counted
from ..types import Json
from .candidates import Choice, choices, figure_of, number
from .lines import Entries, size
from .made import Result, made, results

__all__ = ["Figure", "Headline", "Refusal", "Sentence", "headline", "microseconds", "points", "refusals"]


class Sentence(NamedTuple):
    """A sentence, and the stage to look at for more: empty if there is none."""

    text: str
    stage: str = ""


class Figure(NamedTuple):
    """A figure as it is shown: `accuracy`, `98.5 %`, of the model `of`, beside `99 % original`.

    `amount` is its value: percent, microseconds or bytes.
    """

    name: str
    value: str
    amount: float
    reference: str = ""
    of: str = ""


class Refusal(NamedTuple):
    """A stage that failed, or with `candidate` one that it did not accept, and the reason."""

    stage: str
    candidate: str
    reason: str

    def __str__(self) -> str:
        if self.candidate:
            return f"{self.stage} rejected {self.candidate}: {self.reason}"
        return f"{self.stage} failed: {self.reason}"


class Headline(NamedTuple):
    """What a reader must know of a run. `figures` are at most three."""

    made: Sentence
    chosen: Sentence
    refused: Sentence
    figures: tuple[Figure, ...]

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """The three sentences in their order."""
        return (self.made, self.chosen, self.refused)


def headline(record: RunRecord) -> Headline:
    """Return what is to be said first of a run, which may have failed, or made only some of its stages."""
    stages = record.stages
    chosen, found = choices(stages), results(stages)
    figures = tuple(_figures(stages, chosen, found))[:3]
    return Headline(_made(record, found), _chosen(stages, chosen), _refused(stages), figures)


def refusals(stages: Entries) -> list[Refusal]:
    """Return every stage that failed, then every candidate that was rejected, with the reasons."""
    failed = [
        Refusal(id_, "", str(entry.get("error") or "no reason is recorded").removeprefix(f"{id_}: "))
        for id_, entry in stages.items()
        if entry["state"] == "failed"
    ]
    return failed + [
        Refusal(choice.stage, candidate.name, candidate.rejected)
        for choice in choices(stages)
        for candidate in choice.candidates
        if candidate.rejected
    ]


def _made(record: RunRecord, found: Sequence[Result]) -> Sentence:
    wrong = [id_ for id_, entry in record.stages.items() if entry["state"] in ("failed", "interrupted")]
    stage = wrong[0] if wrong else found[-1].stage if found else ""
    return Sentence(made(record, found), stage)


def _chosen(stages: Entries, found: list[Choice]) -> Sentence:
    if not found:
        selects = [id_ for id_, entry in stages.items() if entry.get("uses") == "select"]
        if selects:
            return Sentence(f"{selects[0]} compared nothing: {stages[selects[0]]['state']}.", selects[0])
        return Sentence("No candidates were compared.")
    choice = found[-1]
    if choice.chosen is None:
        return Sentence(
            f"{choice.stage} chose none of {counted(len(choice.candidates), 'candidate')}.", choice.stage
        )
    accepted = [candidate for candidate in choice.candidates if not candidate.rejected]
    by_size = choice.objective == "size"
    value = choice.chosen.bytes if by_size else choice.chosen.latency_us
    shown = "" if value is None else size(int(value)) if by_size else microseconds(value)
    of = f"of {counted(len(accepted), 'candidate')}" if len(accepted) > 1 else "the only candidate"
    if choice.max_drop is not None:
        of += f" that {'lose' if len(accepted) > 1 else 'loses'} at most {points(choice.max_drop)}"
    best = f"{'the smallest' if by_size else 'the fastest'} ({shown}) " if len(accepted) > 1 else ""
    return Sentence(f"{choice.stage} chose {choice.chosen.name}: {best}{of}.", choice.stage)


def _refused(stages: Entries) -> Sentence:
    found = refusals(stages)
    if not found:
        return Sentence("Nothing failed, and no candidate was rejected.")
    more = f" And {counted(len(found) - 1, 'more refusal')}." if len(found) > 1 else ""
    return Sentence(f"{found[0]}.{more}", found[0].stage)


def _figures(stages: Entries, compared: list[Choice], found: list[Result]) -> Iterator[Figure]:
    choice = compared[-1] if compared and compared[-1].chosen else None
    yield from list(_accuracy(stages, choice))[:1]
    yield from list(_latency(stages, choice))[:1]
    if choice and choice.chosen and choice.chosen.bytes is not None:
        beside = choice.largest
        reference = f"{size(beside.bytes)} {beside.name}" if beside and beside.bytes else ""
        yield Figure("size", size(choice.chosen.bytes), choice.chosen.bytes, reference, choice.chosen.name)
    elif found:
        yield Figure("size", size(found[-1].bytes_), found[-1].bytes_, of=found[-1].name)


def _accuracy(stages: Entries, choice: Choice | None) -> Iterator[Figure]:
    if choice and choice.chosen and choice.chosen.accuracy is not None:
        best, drop = choice.chosen.accuracy, choice.chosen.drop
        original = _original(None if drop is None else best + drop)
        yield Figure("accuracy", f"{best:.2f} %", best, original, choice.chosen.name)
    for id_, entry in _failed_or_last(stages):
        if (value := number(figure_of(entry, "accuracy"))) is not None:
            original = _original(number(figure_of(entry, "reference_accuracy")))
            yield Figure("accuracy", f"{value:.2f} %", value, original, id_)
    for id_, entry in _failed_or_last(stages):
        if (value := number(figure_of(entry, "max_abs"))) is not None:
            allowed = number(figure_of(entry, "allowed"))
            limit = "" if allowed is None else f"{allowed:.3g} allowed"
            yield Figure("difference", f"{value:.3g}", value, limit, id_)


def _original(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f} % original"


def _latency(stages: Entries, choice: Choice | None) -> Iterator[Figure]:
    if choice and choice.chosen and choice.chosen.latency_us is not None:
        beside = choice.largest
        reference = f"{microseconds(beside.latency_us)} {beside.name}" if beside and beside.latency_us else ""
        chosen_us = choice.chosen.latency_us
        yield Figure("latency", microseconds(chosen_us), chosen_us, reference, choice.chosen.name)
    for id_, entry in _failed_or_last(stages):
        medians = figure_of(entry, "median_us")
        if isinstance(medians, dict) and (value := number(medians.get("candidate"))) is not None:
            reference_us = number(medians.get("reference"))
            reference = "" if reference_us is None else f"{microseconds(reference_us)} original"
            yield Figure("latency", microseconds(value), value, reference, id_)


def _failed_or_last(stages: Entries) -> list[tuple[str, Mapping[str, Json]]]:
    """Return the stages from the last to the first, but those that failed before all others."""
    backwards = list(stages.items())[::-1]
    return sorted(backwards, key=lambda item: item[1]["state"] != "failed")


def microseconds(value: float) -> str:
    """Return a latency: `49 µs`, `1.2 ms`."""
    return f"{value:.3g} µs" if value < 1000 else f"{value / 1000:.3g} ms"


def points(value: float) -> str:
    """Return a loss of accuracy: `0.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"
