"""The site of the docs: whole, findable, and loaded from itself alone."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.site import Page, built

pytestmark = pytest.mark.slow

_LARGEST_BYTES = 1 << 20
"""A page with all that it is made of; the largest are the reference of the stages and the messages."""
_ON_DEMAND = {"mermaid", "glightbox", "arithmatex", "pyodide"}
"""For elements of these classes the theme's script would load a library from elsewhere."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("site"))


def pages(site: Path) -> dict[str, Page]:
    return {file.relative_to(site).as_posix(): Page(file) for file in site.rglob("*.html")}


def test_every_page_of_the_docs_is_there_with_a_title_one_h1_and_headings_in_order(site: Path) -> None:
    found = pages(site)
    sources = {
        p.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for p in (ROOT / "docs").rglob("*.md")
    }
    assert sources | {"404.html"} == set(found)
    for name, page in found.items():
        assert page.title.strip(), name
        levels = [1] if name == "404.html" else page.headings
        assert levels.count(1) == 1, name
        assert levels[0] == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), name
        assert (site / name).stat().st_size < _LARGEST_BYTES, name
    titles = [page.title for page in found.values()]
    assert len(set(titles)) == len(titles)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for name, page in pages(site).items():
        assert [address for address in page.loaded if re.match(r"(?:\w+:)?//", address)] == [], name
        assert page.classes & _ON_DEMAND == set(), name
        assert "data-md-source" not in (site / name).read_text(), name
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()) == [], sheet


def test_the_search_has_a_heading_and_words_of_every_page(site: Path) -> None:
    items = json.loads((site / "search.json").read_text())["items"]
    texts: dict[str, str] = {}
    for item in items:
        page = item["location"].partition("#")[0]
        texts[page] = f"{texts.get(page, '')} {item['title']} {item['text']}"
    for name in set(pages(site)) - {"404.html"}:
        said = (ROOT / "docs" / name).with_suffix(".md").read_text()
        title = re.findall(r"^# (.+)$", said, re.MULTILINE)[0]
        assert title.partition("`")[0] in texts[name], name
    assert "did you mean" in texts["troubleshooting.html"]
