"""The page of figures: one figure of a pipeline over its runs, and over its matrix in the last."""

from __future__ import annotations

from itertools import islice

from starlette.responses import HTMLResponse

from ..store.counter import number_of
from .charts import COLORS, Point, bars, lines
from .overview import pipelines_of
from .series import RUNS, Series, choices, series_of
from .site import Site
from .text import number

__all__ = ["figures_page"]

_LOOKED_AT = 5
_ROWS = 100


def figures_page(site: Site, pipeline: str, of: str) -> HTMLResponse:
    """Return the page for a figure, `stage/figure`; without one, or an unknown one, it is the first."""
    known = pipelines_of(site, list(site.library.runs()))
    chosen = next((one for one in known if one.id == pipeline), known[0] if known else None)
    records = [
        record
        for run in islice(site.library.runs(chosen.id), 50)
        if run.phase == "finished" and (record := site.library.record(run.id)) is not None
    ] if chosen else []  # fmt: skip
    possible = choices(records[:_LOOKED_AT]) or choices(records)
    choice = next((one for one in possible if one.address == of), possible[0] if possible else None)
    if chosen is None or choice is None:
        return site.page("figures.html", pipelines=known, chosen=chosen, possible=[], choice=None)
    series = series_of(site.library, chosen.id, choice)
    title = f"{choice.stage}: {choice.figure}"
    last = [(id_, values[-1][1]) for id_, values in series.values.items() if values[-1][0] == series.runs[-1]]
    return site.page(
        "figures.html", pipelines=known, chosen=chosen, possible=possible, choice=choice,
        over_time=lines(f"{title} over runs", _points(series), [str(number_of(run)) for run in series.runs]),
        over_matrix=bars(f"{title} in the last run", last[:_ROWS]) if len(last) > 1 else "",
        names=list(series.values)[:COLORS], left_out=max(0, len(series.values) - COLORS),
        rows=_rows(series), limit=RUNS, instances=list(series.values)[:COLORS],
    )  # fmt: skip


def _points(series: Series) -> dict[str, list[Point]]:
    places = {run: index for index, run in enumerate(series.runs)}
    return {
        id_: [Point(places[run], value, f"{id_} {number(value)}, run {run}", f"/runs/{run}")
              for run, value in values]
        for id_, values in series.values.items()
    }  # fmt: skip


def _rows(series: Series) -> list[tuple[str, list[float | None]]]:
    """Return the runs, the newest first, with the value of each instance that has a colour."""
    by_run = {id_: dict(values) for id_, values in list(series.values.items())[:COLORS]}
    return [(run, [by_run[id_].get(run) for id_ in by_run]) for run in reversed(series.runs[-_ROWS:])]
