"""Code and docs use the words of docs/style.md, and none of those that it retires."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.conftest import ROOT

STYLE = "docs/style.md"
ROWS = re.findall(r"^\| (.+?) \| (.+?) \|$", (ROOT / STYLE).read_text(), re.MULTILINE)
RETIRED = [old for old, _ in ROWS if old != "retired"]
PLACES = ("deploy_runner", "stages", "docs", "examples", "*.md", "*.yml", "*.yaml")


def retired_in(text: str) -> list[str]:
    """Return the retired phrases of a text, whatever its case and wherever its lines break."""
    found = {phrase: re.sub(r"\\? ", r"[\\s#]+", re.escape(phrase)) for phrase in RETIRED}
    return [p for p, pattern in found.items() if re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]


def texts() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kinds = (".py", ".md", ".yml", ".yaml", ".json")
    return [name for name in listed.stdout.splitlines() if name.endswith(kinds) and name != STYLE]


@pytest.mark.parametrize("name", texts())
def test_no_text_uses_a_retired_phrase(name: str) -> None:
    assert retired_in((ROOT / name).read_text()) == []


def test_a_retired_phrase_is_found_in_any_case_and_over_lines() -> None:
    assert len(RETIRED) > 40
    assert retired_in("The file is There\nalready.") == ["is there already"]
    assert retired_in("# a file is there\n    # already") == ["is there already"]
    assert retired_in("another run is going on") == []
