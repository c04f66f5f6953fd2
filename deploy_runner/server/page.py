"""The page at /: the model's inputs with an example, a button, and what the model answers."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING

from . import page_raw
from .ports import Port

if TYPE_CHECKING:
    from .service import Service

__all__ = ["CONTENT_SECURITY_POLICY", "STYLE", "page", "script"]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob: data:; "
    "media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<link rel="stylesheet" href="page.css">
<script src="page.js" defer></script>
</head>
<body>
<main>
<h1>{name}</h1>
<p>Version <code>{version}</code>. Routes: <code>POST /predict</code>, <code>/v2</code>,
<a href="docs">docs</a>, <a href="openapi.json">openapi.json</a>, <a href="metrics">metrics</a>.</p>
{raw}<form id="form">
{inputs}
<button type="submit">Run</button>
</form>
{end}<p id="status" role="status" aria-live="polite"></p>
<div id="outputs"></div>
<pre id="curl" hidden></pre>
</main>
</body>
</html>
"""

_INPUT = """<p><label for="input-{index}"><b>{name}</b>: <code>{port}</code></label><br>
<textarea id="input-{index}" data-name="{name}" rows="8" spellcheck="false">{example}</textarea></p>"""

STYLE = """body { font: 1rem/1.5 system-ui, sans-serif; margin: 0; color: #1a1a1a; background: #fff; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
textarea { width: 100%; box-sizing: border-box; font: 0.9rem/1.4 ui-monospace, monospace; }
button { font: inherit; padding: 0.4rem 1.2rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; display: block; overflow-x: auto; }
caption { text-align: left; font-weight: bold; }
td, th { border: 1px solid #767676; padding: 0.2rem 0.5rem; text-align: right;
         font-variant-numeric: tabular-nums; }
#status.failed { color: #a40000; }
.drop { border: 2px dashed #767676; padding: 1rem; }
img { max-width: 20rem; max-height: 20rem; }
meter { width: 12rem; }
#prediction { font-size: 1.5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #767676; padding: 0.5rem; }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616; }
  a { color: #8ab4f8; }
  #status.failed { color: #ff8a80; }
}
"""

_SCRIPT = r""""use strict";
const form = document.getElementById("form");
const status = document.getElementById("status");
const outputs = document.getElementById("outputs");
const curl = document.getElementById("curl");

function say(text, failed) {
  status.textContent = text;
  status.className = failed ? "failed" : "";
}

function table(name, samples) {
  const made = document.createElement("table");
  made.createCaption().textContent = name;
  for (const [index, sample] of samples.entries()) {
    const row = made.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = String(index);
    row.append(head);
    for (const value of [sample].flat(Infinity).slice(0, 1000)) {
      row.insertCell().textContent = String(typeof value === "number" ? +value.toPrecision(6) : value);
    }
  }
  return made;
}

function inputs() {
  const named = {};
  for (const area of form.querySelectorAll("textarea")) {
    try {
      named[area.dataset.name] = JSON.parse(area.value);
    } catch (error) {
      area.focus();
      throw new Error(`${area.dataset.name} is not JSON: ${error.message}`);
    }
  }
  return named;
}

function bars(name, found) {
  const made = document.createElement("table");
  made.createCaption().textContent = name;
  for (const one of found) {
    const row = made.insertRow();
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = String(one.label);
    row.append(head);
    const value = one.score ?? one.share;
    const meter = document.createElement("meter");
    meter.value = value;
    meter.textContent = String(value);
    row.insertCell().append(meter);
    row.insertCell().textContent = `${(100 * value).toFixed(1)} %`;
    if (one.box) { row.insertCell().textContent = one.box.map((x) => x.toFixed(0)).join(", "); }
  }
  return made;
}

function show(answer) {
  const named = answer !== null && typeof answer === "object" ? answer : {};
  if (named.outputs && Object.keys(named).length === 1) {
    for (const [name, values] of Object.entries(named.outputs)) {
      outputs.append(table(name, Array.isArray(values) ? values : [values]));
    }
    return;
  }
  const listed = named.classes || named.objects;
  if ("prediction" in named) {
    const said = document.createElement("p");
    said.id = "prediction";
    said.textContent = [named.prediction].flat().join(", ");
    outputs.append(said);
  } else if (!listed) {
    const text = document.createElement("pre");
    text.textContent = JSON.stringify(answer, null, 1).slice(0, 20000);
    outputs.append(text);
  }
  if (listed) { outputs.append(bars(named.objects ? "objects" : "classes", listed)); }
  if (named.png) {
    const mask = document.createElement("img");
    mask.alt = "each pixel's class";
    mask.src = `data:image/png;base64,${named.png}`;
    outputs.append(mask);
  }
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

async function ask(body, type, data) {
  outputs.replaceChildren();
  curl.hidden = true;
  say("running…", false);
  const started = performance.now();
  const response = await fetch("predict", {method: "POST", headers: {"Content-Type": type}, body});
  const answer = await response.json();
  if (!response.ok) {
    throw new Error(answer.detail.map((problem) => problem.msg).join("; "));
  }
  show(answer);
  curl.textContent = `curl ${new URL("predict", location)} -H ${quoted(`Content-Type: ${type}`)} ${data}`;
  curl.hidden = curl.textContent.length > 4000;
  say(`answered in ${(performance.now() - started).toFixed(1)} ms`, false);
}

async function run() {
  const body = JSON.stringify({inputs: inputs()});
  await ask(body, "application/json", `-d ${quoted(body)}`);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run().catch((error) => say(error.message, true));
});
"""


def page(service: Service) -> str:
    """Return the page for the model that is served now."""
    model = service.live.model
    inputs = [
        _INPUT.format(
            index=index,
            name=html.escape(port.name),
            port=html.escape(str(port)),
            example=html.escape(_example(port, model.example[port.name].tolist())),
        )
        for index, port in enumerate(model.inputs)
    ]
    io = service.live.io
    return _PAGE.format(
        name=html.escape(service.name), version=service.live.version, inputs="\n".join(inputs),
        raw=page_raw.form(io) if io is not None else "", end="</details>\n" if io is not None else "",
    )  # fmt: skip


def script(service: Service) -> str:
    """Return the page's script."""
    return _SCRIPT + (page_raw.SCRIPT if service.live.io is not None else "")


def _example(port: Port, value: object) -> str:
    """Return JSON with the innermost lists on one line each."""
    text = json.dumps(value)
    return text.replace("], [", "],\n[") if len(port.shape) > 1 else text
