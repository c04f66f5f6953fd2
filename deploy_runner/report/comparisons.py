"""What was compared with the original → tables: differences beside their tolerances, and latencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..types import Json, StageNode
from .candidates import figure_of, number
from .lines import Entries

__all__ = ["Cell", "Latency", "Parity", "latencies", "parities"]


class Cell(NamedTuple):
    """A figure and its limit as they are shown; `beyond` says that the limit is not kept."""

    value: str = ""
    limit: str = ""
    beyond: bool = False


class Parity(NamedTuple):
    """How far a model is from the original.

    `worst` is the sample that differs most, if it is recorded, and `sample` what it is recognised by.
    """

    stage: str
    state: str
    max_abs: Cell
    max_rel: Cell
    cosine: Cell
    agreement: Cell
    worst: str
    sample: str


class Latency(NamedTuple):
    """Median and 95th percentile of a model, in µs, beside the original's."""

    stage: str
    median_us: float
    p95_us: float
    reference_us: float | None
    reference_p95_us: float | None


def parities(stages: Entries, nodes: Mapping[str, StageNode]) -> list[Parity]:
    """Return a row for each stage that compared its result with the original."""
    return [_parity(id_, entry, nodes.get(id_)) for id_, entry in stages.items() if _compared(entry)]


def _compared(entry: Mapping[str, Json]) -> bool:
    return all(number(figure_of(entry, name)) is not None for name in ("cosine", "argmax_agreement"))


def _parity(id_: str, entry: Mapping[str, Json], node: StageNode | None) -> Parity:
    params = node.params if node is not None else {}
    atol, rtol, allowed = (
        number(v) for v in (params.get("atol"), params.get("rtol"), figure_of(entry, "allowed"))
    )
    given = " + ".join(
        [*([f"{atol:g}"] if atol is not None else []), *([f"{rtol:g}·|b|"] if rtol is not None else [])]
    )
    largest = number(params.get("max_abs"))
    absolute = f"≤ {largest:g}" if largest is not None else f"≤ {given}" if given else ""
    if not absolute and allowed is not None:
        absolute = f"≤ {allowed:.3g}"
    agreement = "agreement" if number(figure_of(entry, "agreement")) is not None else "argmax_agreement"
    return Parity(
        id_,
        str(entry["state"]),
        Cell(_shown(entry, "max_abs"), absolute, _above(entry, "max_abs", largest)),
        Cell(_shown(entry, "max_rel")),
        _least(entry, "cosine", number(params.get("min_cosine")), ".6f"),
        _least(entry, agreement, _least_agreement(params), ".2%"),
        str(figure_of(entry, "worst") or ""),
        str(figure_of(entry, "worst_input") or ""),
    )


def _least_agreement(params: Mapping[str, Json]) -> float | None:
    found = (number(params.get(name)) for name in ("min_argmax_agreement", "min_agreement"))
    return next((value for value in found if value is not None), None)


def _shown(entry: Mapping[str, Json], name: str) -> str:
    value = number(figure_of(entry, name))
    return "" if value is None else f"{value:.3g}"


def _above(entry: Mapping[str, Json], name: str, limit: float | None) -> bool:
    value = number(figure_of(entry, name))
    return limit is not None and value is not None and value > limit


def _least(entry: Mapping[str, Json], name: str, limit: float | None, form: str) -> Cell:
    value = number(figure_of(entry, name)) or 0.0
    if limit is None:
        return Cell(format(value, form))
    return Cell(format(value, form), f"≥ {format(limit, '.4g' if form != '.2%' else '.2%')}", value < limit)


def latencies(stages: Entries) -> list[Latency]:
    """Return a row for each stage that measured latencies."""
    return list(_latencies(stages))


def _latencies(stages: Entries) -> Iterator[Latency]:
    for id_, entry in stages.items():
        medians, p95s = figure_of(entry, "median_us"), figure_of(entry, "p95_us")
        if not isinstance(medians, dict) or not isinstance(p95s, dict):
            continue
        median, p95 = number(medians.get("candidate")), number(p95s.get("candidate"))
        if median is not None and p95 is not None:
            yield Latency(id_, median, p95, number(medians.get("reference")), number(p95s.get("reference")))
