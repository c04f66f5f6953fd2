"""Render a run record as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..engine.runs import COUNTED, RunRecord
from ..types import Graph, Json, OutputSpec, StageNode
from . import graph_svg, pareto_svg
from .candidates import Choice, choices
from .changes import changes
from .comparisons import Parity, latencies, parities
from .folding import fold
from .headline import headline, points, refusals
from .lines import Entries, duration, size
from .timeline import timeline

__all__ = ["MOST_LOG_BYTES", "Material", "is_picture", "render"]

_PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
_MOST_BOXES = 1200
MOST_LOG_BYTES = 6_000
"""So much of the end of a stage's log is in the page."""

_PAGE = "page.html"
_NUMBER = "{:.6g}"
_MOST_ROWS = 300
"""Of a table of stages; the stages themselves are all there."""
_SMALL = 64
"""Pixels: narrower pictures are enlarged."""
_PNG = b"\x89PNG\r\n\x1a\n"


class Material(NamedTuple):
    """What the page shows beside the record.

    `pictures` are the bytes of the pictures by (stage id, output), `logs` the ends of the logs by stage id,
    `before` the pipeline's run before this one.
    """

    pictures: Mapping[tuple[str, str], bytes] = {}
    logs: Mapping[str, str] = {}
    before: RunRecord | None = None


class Picture(NamedTuple):
    """A picture in the page. Of a `small` one the pixels are shown."""

    source: str
    small: bool


def is_picture(output: OutputSpec) -> bool:
    """Say whether an output is a picture that the report shows."""
    return _suffix(output.path) in _PICTURES


def _suffix(path: str) -> str:
    return path[path.rfind(".") :].lower()


def render(record: RunRecord, graph: Graph, material: Material) -> str:
    """Return the page."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    nodes: Mapping[str, StageNode] = graph.stages
    stages = record.stages
    compared = choices(stages)
    measured = latencies(stages)
    environment = Environment(
        loader=FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = sorted(parities(stages, nodes), key=lambda row: row.state != "failed")
    compared_with = _folded(found)
    pictures = _sources(material, nodes, {choice.stage for choice in compared})
    earlier = material.before.stages if material.before else {}
    return environment.get_template(_PAGE).render(
        styles=Markup(graph_svg.STYLE + pareto_svg.STYLE),
        run=record.data,
        nodes=nodes,
        counts=", ".join(f"{record.data[s]} {s}" for s in COUNTED if record.data[s]),
        top=headline(record),
        refusals=refusals(stages),
        graph=_graph(record),
        time=timeline(stages, float(str(record.data["seconds"]))),
        choices=[_compared(choice) for choice in compared],
        parities=compared_with,
        samples=_taken(pictures, compared_with[:_MOST_ROWS]),
        most_rows=_MOST_ROWS,
        latencies=_folded(measured),
        slowest_us=max((max(row.p95_us, row.reference_p95_us or 0.0) for row in measured), default=1.0),
        before=material.before,
        reasons=_reasons(stages),
        differences=changes(earlier, stages),
        pictures=pictures,
        logs=material.logs,
        anchor=graph_svg.anchor,
        command=lambda stage, output: _command(record, f"{stage}.{output}"),
        duration=duration,
        points=points,
        size=size,
        share=lambda part, whole: round(100 * part / whole, 3) if whole else 0,
        number=lambda value: (
            "" if value is None else _NUMBER.format(value) if isinstance(value, float) else value
        ),
        singles=_singles,
        is_table=_is_table,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )


def _graph(record: RunRecord) -> Any:
    from markupsafe import Markup

    boxes = graph_svg.boxes_of(record.stages)
    if len(boxes) > _MOST_BOXES:
        return None
    title = f"The stages of {record.data['name']} and their order"
    return Markup(graph_svg.draw(boxes, title=title))


class _Compared(NamedTuple):
    """A choice and its picture."""

    choice: Choice
    picture: str


def _compared(choice: Choice) -> _Compared:
    from markupsafe import Markup

    return _Compared(choice, Markup(pareto_svg.draw(choice)))


def _folded(rows: Sequence[Any]) -> list[tuple[str, Any]]:
    """Return the rows with their labels; instances of which the same is said are one row."""
    return [(label, rows[index]) for label, index in fold([(row[0], tuple(row[1:])) for row in rows])]


def _reasons(stages: Entries) -> list[tuple[str, str, str]]:
    """Return which stages were not hits, how they ended and why; instances with one reason are one line."""
    found = [
        (id_, str(e["state"]), str(e.get("reason") or "")) for id_, e in stages.items() if e["state"] != "hit"
    ]
    lines = fold([(id_, (state, reason)) for id_, state, reason in found])
    return [(label, *found[index][1:]) for label, index in lines]


def _sources(
    material: Material, nodes: Mapping[str, StageNode], drawn: Collection[str]
) -> dict[str, dict[str, Picture]]:
    """Return the pictures by stage and name, but those of choices, which the page draws itself."""
    found: dict[str, dict[str, Picture]] = {}
    for (stage, name), content in material.pictures.items():
        if stage not in drawn:
            path = nodes[stage].outputs[name].path if name in nodes[stage].outputs else name
            small = content.startswith(_PNG) and int.from_bytes(content[16:20]) < _SMALL
            found.setdefault(stage, {})[name] = Picture(_data_uri(path, content), small)
    return found


def _taken(
    pictures: dict[str, dict[str, Picture]], rows: Sequence[tuple[str, Parity]]
) -> dict[str, list[Picture]]:
    """Take the pictures of stages that compared, which are shown beside what they found."""
    return {row.stage: list(pictures.pop(row.stage, {}).values()) for _, row in rows}


def _data_uri(path: str, content: bytes) -> str:
    return f"data:{_PICTURES[_suffix(path)]};base64,{base64.b64encode(content).decode()}"


def _command(record: RunRecord, name: str) -> str:
    """Return the command that copies an output of this run, to be given in the pipeline's folder."""
    home, root = os.path.realpath(record.folder.parent.parent), str(record.data["root"])
    overlays = [os.path.relpath(os.path.join(home, file), root) for file in record.files[1:]]
    config = "".join(f" --config {shlex.quote(overlay)}" for overlay in overlays)
    return (
        f"deploy-runner get {shlex.quote(str(record.data['pipeline']))} {shlex.quote(name)}{config} "
        f"--run {record.number}"
    )


def _singles(figures: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in figures.items() if not isinstance(value, dict | list)}


def _is_table(value: object) -> bool:
    """Say whether a figure is rows by name with the same columns each."""
    rows = list(value.values()) if isinstance(value, Mapping) else []
    return bool(rows) and all(isinstance(row, Mapping) and [*row] == [*rows[0]] for row in rows)
