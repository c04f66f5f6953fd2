"""Render a run record as one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from ..engine.runs import COUNTED, RunRecord
from ..types import Graph, OutputSpec, StageNode
from .lines import duration, size

__all__ = ["is_picture", "render"]

_PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run.name }}: run {{ run.id }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --ok: #1a7f37; --bad: #cf222e; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; }
p.sub { color: var(--dim); margin-top: 0; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--dim); }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; }
tr { border-bottom: 1px solid var(--line); }
td.num { text-align: right; white-space: nowrap; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
.ran, .converged { color: var(--ok); } .failed, .interrupted { color: var(--bad); }
.hit { color: var(--dim); } .skipped, .healed { color: #9a6700; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; background: #fff; }
.trust { border: 1px solid var(--bad); border-radius: 3px; padding: 0 .3rem; color: var(--bad); }
</style>
</head>
<body>
<h1>{{ run.name }}</h1>
<p class="sub">run {{ run.id }}, {{ run.started }}, target {{ run.target }}:
{{ counts }} in {{ duration(run.seconds) }}</p>
<table>
<thead><tr><th>stage</th><th>state</th><th>time</th><th>figures and outputs</th></tr></thead>
<tbody>
{% for id, stage in run.stages.items() %}
<tr id="{{ id }}">
<td><strong>{{ id }}</strong><br><code>{{ nodes[id].uses if id in nodes else "" }}</code>
{% if id in nodes and nodes[id].trust %}<br><span class="trust">trust: true</span>{% endif %}</td>
<td class="{{ stage.state }}">{{ stage.state }}</td>
<td class="num">{{ duration(stage.seconds) }}</td>
<td>
{% if stage.error %}<p class="failed">{{ stage.error }}</p>{% endif %}
{% if stage.evidence %}<p>what it wrote: <code>{{ stage.evidence }}</code></p>{% endif %}
{% if stage.reason %}<p>{{ stage.reason }}</p>{% endif %}
<dl>
{% for name, value in stage.figures.items() if value is not mapping and
   (value is string or value is not iterable) %}
<dt>{{ name }}</dt><dd>{{ number(value) }}</dd>
{% endfor %}
{% for name, artifact in (stage.artifacts or {}).items() %}
<dt>{{ name }}</dt><dd>{{ size(artifact.size) }} <code>{{ artifact.digest }}</code></dd>
{% endfor %}
</dl>
{% for name, value in stage.figures.items() if value is mapping or
   (value is iterable and value is not string) %}
{% if is_table(value) %}
<table><caption>{{ name }}</caption>
<thead><tr><th></th>{% for column in value.values() | first %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row, cells in value.items() %}
<tr><th>{{ row }}</th>{% for cell in cells.values() %}<td>{{ number(cell) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% else %}
<details><summary>{{ name }}</summary><pre><code>{{ value | tojson(indent=2) }}</code></pre></details>
{% endif %}
{% endfor %}
</td>
</tr>
{% endfor %}
</tbody>
</table>
{% for title, source in pictures.items() %}
<figure><img src="{{ source }}" alt="{{ title }}"><figcaption>{{ title }}</figcaption></figure>
{% endfor %}
</body>
</html>
"""


def is_picture(output: OutputSpec) -> bool:
    """Say whether an output is a picture that the report shows."""
    return _suffix(output.path) in _PICTURES


def _suffix(path: str) -> str:
    return path[path.rfind(".") :].lower()


def render(record: RunRecord, graph: Graph, pictures: Mapping[tuple[str, str], bytes]) -> str:
    """Return the page. `pictures` holds the bytes of (stage id, output) that are pictures."""
    from jinja2 import Environment

    nodes: Mapping[str, StageNode] = graph.stages
    sources = {
        f"{stage}: {output}": _data_uri(nodes[stage].outputs[output].path, content)
        for (stage, output), content in pictures.items()
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    counts = ", ".join(f"{record.data[s]} {s}" for s in COUNTED if record.data[s])
    return environment.from_string(_PAGE).render(
        run=record.data,
        nodes=nodes,
        counts=counts,
        duration=duration,
        size=size,
        number=lambda value: f"{value:.6g}" if isinstance(value, float) else value,
        is_table=_is_table,
        pictures=sources,
    )


def _is_table(value: object) -> bool:
    """Say whether a figure is rows by name with the same columns each."""
    rows = list(value.values()) if isinstance(value, Mapping) else []
    return bool(rows) and all(isinstance(row, Mapping) and [*row] == [*rows[0]] for row in rows)


def _data_uri(path: str, content: bytes) -> str:
    return f"data:{_PICTURES[_suffix(path)]};base64,{base64.b64encode(content).decode()}"
