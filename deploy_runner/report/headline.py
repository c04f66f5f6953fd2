"""The record of a run → what one reads first: three sentences and three figures, as plain data.

What was made and for which target; what was chosen and why; what failed or was rejected and why. The page,
the job summary and the terminal show the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..engine.runs import RunRecord
from ..errors import counted
from ..types import Json
from .candidates import Choice, Entries, choices, figure_of, listed, number
from .lines import size

__all__ = ["Figure", "Headline", "Refusal", "Sentence", "headline", "points", "refusals"]

_MADE = ("ran", "hit", "healed", "converged")
_NAMED = 2
"""So many results, or pushes, are named; the others are counted."""


class Sentence(NamedTuple):
    """A sentence, and the stage to look at for more: empty if there is none."""

    text: str
    stage: str = ""


class Figure(NamedTuple):
    """A figure as it is shown: `accuracy`, `98.5 %`, of the model `of`, beside `99 % before`."""

    name: str
    value: str
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
    chosen = choices(stages)
    return Headline(
        _made(record), _chosen(stages, chosen), _refused(stages), tuple(_figures(stages, chosen))[:3]
    )


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


def _made(record: RunRecord) -> Sentence:
    stages, data = record.stages, record.data
    count = {state: int(str(data.get(state, 0))) for state in ("failed", "interrupted", "skipped")}
    name, target = data["name"], data["target"]
    if count["failed"] or count["interrupted"]:
        parts = [f"{count[state]} {state}" for state in count if count[state]]
        first = next(id_ for id_, e in stages.items() if e["state"] in ("failed", "interrupted"))
        said = f"{name} for {target} is incomplete: of {counted(len(stages), 'stage')} {', '.join(parts)}."
        return Sentence(said, first)
    results = _results(stages)
    pushes = [id_ for id_, entry in stages.items() if entry.get("converges")]
    made = [f"{id_}.{output} ({size(bytes_)})" for id_, output, bytes_ in results]
    unchanged = bool(stages) and all(entry["state"] == "hit" for entry in stages.values())
    verb = "is unchanged" if unchanged else "is built"
    said = f"{name} for {target} {verb}"
    said += f": {_some(made[::-1])}" if made else ""
    said += f"; pushed by {_some(pushes)}" if pushes else ""
    return Sentence(said + ".", results[-1][0] if results else "")


def _results(stages: Entries) -> list[tuple[str, str, int]]:
    """Return stage, output and size of what no other stage takes further; pushes and checks don't."""
    makers = {id_: entry for id_, entry in stages.items() if _makes(entry)}
    taken = {str(before) for entry in makers.values() for before in listed(entry.get("after"))}
    found = []
    for id_, entry in makers.items():
        artifacts = entry.get("artifacts")
        if id_ in taken or not isinstance(artifacts, dict):
            continue
        for output, artifact in list(artifacts.items())[:1]:
            bytes_ = number(artifact.get("size")) if isinstance(artifact, dict) else None
            found.append((id_, output, int(bytes_ or 0)))
    return found


def _makes(entry: Mapping[str, Json]) -> bool:
    """Say whether a stage made something new of its inputs, rather than pushed or judged them."""
    outputs = entry.get("outputs")
    first = next(iter(outputs), "report") if isinstance(outputs, dict) else "report"
    known = "after" in entry  # Records of version 0.1.0 don't say what a stage takes.
    return known and entry["state"] in _MADE and not entry.get("converges") and first != "report"


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
    shown = "" if value is None else size(int(value)) if by_size else _microseconds(value)
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


def _figures(stages: Entries, found: list[Choice]) -> Iterator[Figure]:
    choice = found[-1] if found and found[-1].chosen else None
    yield from list(_accuracy(stages, choice))[:1]
    yield from list(_latency(stages, choice))[:1]
    if choice and choice.chosen and choice.chosen.bytes is not None:
        beside = choice.largest
        reference = f"{size(beside.bytes)} {beside.name}" if beside and beside.bytes else ""
        yield Figure("size", size(choice.chosen.bytes), reference, choice.chosen.name)
    elif results := _results(stages):
        yield Figure("size", size(results[-1][2]), "", f"{results[-1][0]}.{results[-1][1]}")


def _accuracy(stages: Entries, choice: Choice | None) -> Iterator[Figure]:
    if choice and choice.chosen and choice.chosen.accuracy is not None:
        best, drop = choice.chosen.accuracy, choice.chosen.drop
        yield Figure(
            "accuracy", f"{best:.2f} %", _before(None if drop is None else best + drop), choice.chosen.name
        )
    for id_, entry in _failed_or_last(stages):
        if (value := number(figure_of(entry, "accuracy"))) is not None:
            yield Figure(
                "accuracy", f"{value:.2f} %", _before(number(figure_of(entry, "reference_accuracy"))), id_
            )
    for id_, entry in _failed_or_last(stages):
        if (value := number(figure_of(entry, "max_abs"))) is not None:
            allowed = number(figure_of(entry, "allowed"))
            yield Figure(
                "difference", f"{value:.3g}", "" if allowed is None else f"{allowed:.3g} allowed", id_
            )


def _before(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2f} % original"


def _latency(stages: Entries, choice: Choice | None) -> Iterator[Figure]:
    if choice and choice.chosen and choice.chosen.latency_us is not None:
        beside = choice.largest
        reference = (
            f"{_microseconds(beside.latency_us)} {beside.name}" if beside and beside.latency_us else ""
        )
        yield Figure("latency", _microseconds(choice.chosen.latency_us), reference, choice.chosen.name)
    for id_, entry in _failed_or_last(stages):
        medians = figure_of(entry, "median_us")
        if isinstance(medians, dict) and (value := number(medians.get("candidate"))) is not None:
            reference_us = number(medians.get("reference"))
            reference = "" if reference_us is None else f"{_microseconds(reference_us)} original"
            yield Figure("latency", _microseconds(value), reference, id_)


def _failed_or_last(stages: Entries) -> list[tuple[str, Mapping[str, Json]]]:
    """Return the stages from the last to the first, but those that failed before all others."""
    backwards = list(stages.items())[::-1]
    return sorted(backwards, key=lambda item: item[1]["state"] != "failed")


def _microseconds(value: float) -> str:
    return f"{value:.3g} µs" if value < 1000 else f"{value / 1000:.3g} ms"


def points(value: float) -> str:
    """Return a loss of accuracy: `0.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"


def _some(names: list[str]) -> str:
    shown = names[:_NAMED]
    if left := len(names) - len(shown):
        return ", ".join(shown) + f" and {left} more"
    return " and ".join(shown)
