"""Describe stage types as text for the terminal and as Markdown for the docs."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["describe", "markdown"]

Described = Mapping[str, Any]
"""One entry of `schema.describe_stage_types`."""


_CODE = re.compile(r"^```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


def describe(entry: Described, shared: str = "") -> str:
    """Return one stage type as plain text: what it does, inputs, parameters, outputs, and its example.

    `shared` is the text with the files that several examples use.
    """
    lines = [f"{entry['uses']}: {entry['summary']}"]
    for paragraph in filter(None, str(entry["description"]).split("\n\n")):
        lines += ["", *textwrap.wrap(paragraph, 100, initial_indent="  ", subsequent_indent="  ")]
    if entry["description"]:
        lines.append("")
    if entry.get("extra"):
        lines.append(f"  needs: pip install 'deploy-runner[{entry['extra']}]'")
    for title, part in (("inputs", "inputs"), ("with", "params"), ("outputs", "outputs")):
        if entry[part]:
            lines.append(f"  {title}:")
            lines += [f"    {_member(member)}" for member in entry[part]]
    example = str(entry.get("example") or "")
    lines += ["  example:"] if example else []
    lines += [textwrap.indent(code, "    ") for code in _CODE.findall(example)]
    lines += [textwrap.indent(code, "    ") for code in _CODE.findall(shared) if _stem(code) in example]
    return "\n".join(lines).rstrip()


def _stem(code: str) -> str:
    """Return the name, without its end, of the file in which a block goes: it is on the first line."""
    return code.partition("\n")[0].removeprefix("# ").partition(".")[0]


def _member(member: Described) -> str:
    default = "" if member.get("required") else f" = {member['default']}" if "default" in member else ""
    said = f": {member['description']}" if member.get("description") else ""
    return f"{member['name']} ({member['type']}{default}){said}"


def markdown(described: Sequence[Described], shared: str) -> str:
    """Return the reference page of all stage types; `shared` is said before all examples."""
    return "\n".join(_page(described, shared)) + "\n"


def _page(described: Sequence[Described], shared: str) -> Iterator[str]:
    yield "# Stage types"
    yield ""
    yield "Generated from the stage types; `deploy-runner stages TYPE` prints the same."
    yield ""
    yield "## The examples"
    yield ""
    yield shared.strip()
    for entry in described:
        yield ""
        yield f"## {entry['uses']}"
        yield ""
        yield str(entry["summary"])
        if entry["description"]:
            yield ""
            yield str(entry["description"])
        if entry.get("extra"):
            yield ""
            yield f"Needs `pip install 'deploy-runner[{entry['extra']}]'`."
        for title, part in (("Input", "inputs"), ("Parameter", "params"), ("Output", "outputs")):
            if entry[part]:
                yield ""
                yield f"| {title} | Type | Default | Meaning |"
                yield "|---|---|---|---|"
                yield from (_row(member) for member in entry[part])
        if entry.get("example"):
            yield ""
            yield str(entry["example"]).strip()


def _row(member: Described) -> str:
    default = "required" if member.get("required") else f"`{member.get('default', '')}`"
    cells = (f"`{member['name']}`", f"`{member['type']}`", default, member.get("description", ""))
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
