"""The site of the docs in a real Chromium: it searches, fits a phone, and asks nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.common.exceptions import TimeoutException
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


def searches(browser: Any, site: str, words: str, page: str) -> bool:
    """Type words into the search; return whether the page is among the first three results in the end."""
    browser.get(f"{site}/index.html")
    browser.find_element(By.CSS_SELECTOR, "[data-md-component=search] button, .md-search__button").click()
    dialog = "return document.activeElement.shadowRoot?"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"{dialog}.activeElement?.tagName"))
    browser.switch_to.active_element.send_keys(words)
    links = "Array.from(document.activeElement.shadowRoot.querySelectorAll('a'), a => a.href).slice(0, 3)"
    try:
        WebDriverWait(browser, 20).until(
            lambda _: any(f"/{page}.html" in link for link in browser.execute_script(f"return {links}"))
        )
    except TimeoutException:
        return False
    return True


def test_a_message_that_is_pasted_into_the_search_leads_to_its_section(browser: Any, site: str) -> None:
    resize(browser, 1280)
    assert searches(browser, site, "the pre-save checklist failed", "troubleshooting")


GOALS = {
    "sagemaker": ("deploy to sagemaker", "deploy to aws", "sagemaker endpoint"),
    "docker": ("docker image", "docker container"),
    "hub": ("publish on hugging face", "hugging face hub"),
    "browser": ("run in browser", "javascript", "onnxruntime-web"),
    "phone": ("android", "ios app", "mobile app"),
    "cpp": ("c++", "libtorch"),
    "github-actions": ("github actions", "ci"),
    "shared-cache": ("share cache between machines", "s3 cache"),
    "ray": ("ray", "ray cluster"),
    "own-stage": ("own stage", "custom stage"),
    "int8": ("int8 accuracy", "quantize int8"),
    "rejected": ("model rejected", "stage failed", "parity failed"),
    "rollback": ("rollback", "roll back", "undo deployment"),
}
"""What somebody with this goal may type into the search."""


def test_each_goal_is_found_by_the_words_that_people_type(browser: Any, site: str) -> None:
    resize(browser, 1280)
    guides = {page.stem for page in (ROOT / "docs/how-to").glob("*.md")} - {"index"}
    assert guides == set(GOALS)
    missed = [
        words
        for goal, said in GOALS.items()
        for words in said
        if not searches(browser, site, words, f"how-to/{goal}")
    ]
    assert missed == []


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
