"""The report in a real Chromium: accessible, narrow and wide, light and dark, on paper, and with a thousand stages."""

from __future__ import annotations

import base64
import os
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.by import By

from tests.browser.axe import complaints, headings, violations
from tests.conftest import Project
from tests.reports import strange, tree

pytestmark = pytest.mark.slow

WIDTHS = (1280, 390)
A4 = 794
"""The width of its paper in CSS pixels."""
OPEN = "{checkVisibilityCSS: true, contentVisibilityAuto: true}"
MOST_BYTES = 2_000_000


def report(project: Project) -> Path:
    """Return the page of the last run."""
    runs = sorted((project.folder / ".deploy-runner/runs").iterdir())
    return runs[-1] / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("report"))
    strange(project)
    project.cli("run", exits=1)
    project.cli("run", "--set", "stages.first.with.name=b", exits=1)
    return report(project)


def opened(browser: Any, page: Path, *, scheme: str = "light", width: int = 1280) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"file://{quote(os.fspath(page))}")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_accessible_and_fits(browser: Any, page: Path, scheme: str, width: int) -> None:
    browser.get_log("browser")
    opened(browser, page, scheme=scheme, width=width)
    assert violations(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    levels = headings(browser)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert complaints(browser) == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_why_a_candidate_was_rejected_is_on_the_first_screen(browser: Any, page: Path) -> None:
    for width, height in ((1280, 900), (390, 844)):
        opened(browser, page, width=width)
        found = browser.find_element(By.CSS_SELECTOR, ".refusals li")
        assert "the cosine similarity falls below 0.5" in found.text
        assert found.rect["y"] + found.rect["height"] < height


def test_a_box_of_the_graph_leads_to_its_stage(browser: Any, page: Path) -> None:
    opened(browser, page)
    browser.find_element(By.CSS_SELECTOR, ".graph a.failed").click()
    assert browser.current_url.endswith("#stage-gate")
    assert browser.execute_script("return document.querySelector(':target h3').textContent").startswith(
        "gate"
    )


def test_on_paper_all_that_is_folded_is_open_and_nothing_is_cut_off(browser: Any, page: Path) -> None:
    opened(browser, page, width=A4)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    folded = (
        "return [...document.querySelectorAll('details > :not(summary)')]"
        f".filter(e => !e.checkVisibility({OPEN})).map(e => e.textContent)"
    )
    assert browser.find_elements(By.CSS_SELECTOR, "details:not([open])")
    assert browser.execute_script(folded) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= A4
    wide = (
        "return [...document.querySelectorAll('table, svg, img, pre')]"
        ".filter(e => e.getBoundingClientRect().right > arguments[0]).map(e => e.outerHTML)"
    )
    assert browser.execute_script(wide, A4) == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    data = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert data.startswith(b"%PDF-")
    assert len(data) < MOST_BYTES


def test_a_thousand_stages_are_one_page_that_opens_and_leads_to_each(browser: Any, tmp_path: Path) -> None:
    project = Project(tmp_path / "thousand")
    tree(project, 1000)
    states = project.states()
    assert sorted(states.values()) == ["hit"] * 999 + ["ran"]
    page = report(project)
    assert page.stat().st_size < MOST_BYTES
    opened(browser, page)
    boxes = browser.find_elements(By.CSS_SELECTOR, ".graph a")
    assert len(boxes) == 1000
    browser.execute_script("arguments[0].scrollIntoView()", boxes[640])
    boxes[640].click()
    assert browser.execute_script("return document.querySelector(':target h3').textContent").startswith(
        "stage-640 "
    )
    assert complaints(browser) == []
