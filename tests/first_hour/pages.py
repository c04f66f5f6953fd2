"""What the pages tell a newcomer to type."""

from __future__ import annotations

import re
import shlex

from tests.conftest import ROOT

__all__ = ["HOUR", "commands", "every_command", "extras", "fragments", "section"]

HOUR = ROOT / "docs/first-hour.md"
_BLOCK = re.compile(r"^( *)```([\w-]+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """Return what a page says below a heading."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def commands(text: str) -> list[str]:
    """Return the commands of the console blocks, in order."""
    lines = "\n".join(body for _, kind, body in _BLOCK.findall(text) if kind == "console").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]


def fragments(text: str) -> list[str]:
    """Return the fragments of YAML, in order."""
    return [body for _, kind, body in _BLOCK.findall(text) if kind == "yaml-fragment"]


def extras() -> str:
    """Return the extras that the README has everybody install."""
    said = section((ROOT / "README.md").read_text(), "In your own project")
    (command,) = (line for line in commands(said) if line.startswith("pip install"))
    found = re.search(r"\[[\w,-]+\]", command)
    assert found, command
    return found[0]


def every_command() -> dict[str, list[str]]:
    """Return the words of each command line of ours in the README and the docs, by where it stands."""
    found: dict[str, list[str]] = {}
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        text = page.read_text()
        blocks = [body for _, kind, body in _BLOCK.findall(text) if kind in ("console", "text")]
        lines = [line.strip().removeprefix("$ ") for body in blocks for line in body.splitlines()]
        lines += re.findall(r"(?<!`)`(deploy-runner [^`]+)`(?!`)", _BLOCK.sub("", text))
        for line in lines:
            if re.match(r"deploy-runner (?!VERB)", line) and "…" not in line:
                words = re.split(r" [>|] ", line)[0]
                found[f"{page.relative_to(ROOT)}: {words}"] = shlex.split(words, comments=True)[1:]
    return found
