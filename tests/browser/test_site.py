"""The site of the docs in a real Chromium: it searches, fits a phone, and asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import ROOT
from tests.site import built, served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(built(tmp_path_factory.mktemp("site"))) as address:
        yield address


def resize(browser: Any, width: int) -> None:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_a_message_that_is_pasted_into_the_search_leads_to_its_section(browser: Any, site: str) -> None:
    resize(browser, 1280)
    browser.get(f"{site}/index.html")
    browser.find_element(By.CSS_SELECTOR, "[data-md-component=search] button, .md-search__button").click()
    dialog = "return document.activeElement.shadowRoot?"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"{dialog}.activeElement?.tagName"))
    browser.switch_to.active_element.send_keys("outputs are separate places: none is inside another")
    WebDriverWait(browser, 60).until(
        lambda _: "Writing a pipeline" in browser.execute_script(f"{dialog}.textContent")
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_its_window_or_asks_another_host(browser: Any, site: str, width: int) -> None:
    resize(browser, width)
    browser.get_log("browser")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        browser.get(f"{site}/{name}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, name
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert all(address.startswith((site, "data:")) for address in loaded), (name, loaded)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
