"""Describe stage types as text for the terminal and as Markdown for the docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["describe", "markdown"]

Described = Mapping[str, Any]
"""One entry of `schema.describe_stage_types`."""


def describe(entry: Described) -> str:
    """Return one stage type as plain text: its summary, inputs, parameters, outputs."""
    lines = [f"{entry['uses']}: {entry['summary']}"]
    if entry.get("extra"):
        lines.append(f"  needs: pip install 'deploy-runner[{entry['extra']}]'")
    for title, part in (("inputs", "inputs"), ("with", "params"), ("outputs", "outputs")):
        if entry[part]:
            lines.append(f"  {title}:")
            lines += [f"    {_member(member)}" for member in entry[part]]
    return "\n".join(lines)


def _member(member: Described) -> str:
    default = "" if member.get("required") else f" = {member['default']}" if "default" in member else ""
    said = f": {member['description']}" if member.get("description") else ""
    return f"{member['name']} ({member['type']}{default}){said}"


def markdown(described: Sequence[Described]) -> str:
    """Return the reference page of all stage types."""
    return "\n".join(_page(described)) + "\n"


def _page(described: Sequence[Described]) -> Iterator[str]:
    yield "# Stage types"
    yield ""
    yield "Generated from the stage types; `deploy-runner stages TYPE` prints the same."
    for entry in described:
        yield ""
        yield f"## {entry['uses']}"
        yield ""
        yield str(entry["summary"])
        if entry.get("extra"):
            yield ""
            yield f"Needs `pip install 'deploy-runner[{entry['extra']}]'`."
        for title, part in (("Input", "inputs"), ("Parameter", "params"), ("Output", "outputs")):
            if entry[part]:
                yield ""
                yield f"| {title} | Type | Default | Meaning |"
                yield "|---|---|---|---|"
                yield from (_row(member) for member in entry[part])


def _row(member: Described) -> str:
    default = "required" if member.get("required") else f"`{member.get('default', '')}`"
    cells = (f"`{member['name']}`", f"`{member['type']}`", default, member.get("description", ""))
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
