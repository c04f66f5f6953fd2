"""The part of the page that takes raw input: a picture, a sound, a text or a row in, labels with bars out."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from .raw.rawio import RawIo

__all__ = ["SCRIPT", "form"]

_FORM = """<form id="raw" data-fields="{fields}">
{inputs}
<button type="submit">Run</button>
</form>
<details><summary>Tensors</summary>
"""

_FILE = """<p class="drop" id="drop-{field}">
<label for="raw-{field}">{what}: choose a file, or drop it here</label><br>
<input id="raw-{field}" data-field="{field}" type="file" accept="{accept}" required></p>
<div id="preview-{field}"></div>"""
_TEXT = """<p><label for="raw-{field}">{what}</label><br>
<textarea id="raw-{field}" data-field="{field}" rows="4" {more}></textarea></p>"""
_FILES = {
    "image": ("Picture", "image/jpeg,image/png,image/webp"),
    "audio": ("Sound", "audio/*,.wav,.flac,.ogg,.mp3"),
}

SCRIPT = """
const raw = document.getElementById("raw");
const files = {};

function take(field, file) {
  files[field] = file;
  const preview = document.getElementById(`preview-${field}`);
  const shown = document.createElement(field === "image" ? "img" : "audio");
  shown.src = URL.createObjectURL(file);
  if (field === "image") { shown.alt = file.name; } else { shown.controls = true; }
  preview.replaceChildren(shown);
}

for (const input of raw.querySelectorAll("input[type=file]")) {
  const field = input.dataset.field;
  input.addEventListener("change", () => { if (input.files[0]) { take(field, input.files[0]); } });
  const drop = document.getElementById(`drop-${field}`);
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) {
      input.files = event.dataTransfer.files;
      take(field, event.dataTransfer.files[0]);
    }
  });
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} can't be read`));
    reader.readAsDataURL(file);
  });
}

function row() {
  const found = {};
  for (const input of raw.querySelectorAll("[data-column]")) {
    if (input.value !== "") {
      found[input.dataset.column] = input.type === "text" ? input.value : JSON.parse(input.value);
    }
  }
  return found;
}

async function sample(fields) {
  const found = {};
  for (const field of fields) {
    if (field === "row") { found.row = row(); continue; }
    const input = document.getElementById(`raw-${field}`);
    if (field in files) {
      found[field] = await base64(files[field]);
    } else {
      found[field] = field === "data" ? JSON.parse(input.value) : input.value;
    }
  }
  const pair = document.getElementById("raw-text_pair");
  if (pair) { found.text_pair = pair.value; }
  return found;
}

async function runRaw() {
  const fields = raw.dataset.fields.split(" ");
  if (fields.length === 1 && fields[0] in files) {
    const file = files[fields[0]];
    await ask(file, file.type || `${fields[0]}/*`, `--data-binary @${quoted(file.name)}`);
  } else {
    const body = JSON.stringify(await sample(fields));
    await ask(body, "application/json", `-d ${quoted(body)}`);
  }
}

raw.addEventListener("submit", (event) => {
  event.preventDefault();
  runRaw().catch((error) => say(error.message, true));
});
"""


def form(io: RawIo) -> str:
    """Return the form for a sample of raw input; it opens the element that hides that of tensors."""
    inputs = [_input(field, io.spec) for field in io.kinds.fields]
    if "text" in io.spec and io.spec["text"]["pairs"]:
        inputs.append(_TEXT.format(field="text_pair", what="Second text", more="required"))
    return _FORM.format(fields=" ".join(io.kinds.fields), inputs="\n".join(inputs))


def _input(field: str, spec: Mapping[str, Any]) -> str:
    if field in _FILES:
        what, accept = _FILES[field]
        return _FILE.format(field=field, what=what, accept=accept)
    if field == "row":
        return "<table><caption>Row</caption>" + "".join(map(_column, spec["row"]["columns"])) + "</table>"
    if field == "data":
        return _TEXT.format(field=field, what="Data, as JSON", more='spellcheck="false" required')
    return _TEXT.format(field=field, what="Text", more="")


def _column(column: Mapping[str, Any]) -> str:
    name = html.escape(column["name"])
    needed = "" if column["missing"] is not None else " required"
    attributes = f'id="column-{name}" data-column="{name}"{needed}'
    if column["kind"] == "number":
        field = f'<input {attributes} type="number" step="any">'
    elif column["kind"] == "category" and column["unknown"] is not None:
        field = f'<input {attributes} type="text">'
    else:
        values = [True, False] if column["kind"] == "flag" else column["vocabulary"]
        options = "".join(map(_option, values))
        field = f'<select {attributes}><option value=""></option>{options}</select>'
    return f'<tr><th scope="row"><label for="column-{name}">{name}</label></th><td>{field}</td></tr>'


def _option(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return f'<option value="{html.escape(json.dumps(value))}">{html.escape(shown)}</option>'
