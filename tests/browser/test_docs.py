"""Swagger UI at /docs, in a real Chromium, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.serve import models
from tests.serve.server import Server, serving


@pytest.fixture(scope="module", params=["fastapi", "flask"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("scorer")
    options = ("--name", "<scorer>", "--server", request.param)
    with serving(models.scorer(folder / "model"), *options, folder=folder) as server:
        yield server


def test_swagger_ui_shows_every_route_and_runs_one(browser: Any, scorer: Server) -> None:
    browser.get_log("browser")
    browser.get(f"{scorer.url}/docs")
    shown = By.CSS_SELECTOR, ".opblock-summary-path"
    WebDriverWait(browser, 60).until(lambda _: browser.find_elements(*shown))
    paths = {element.text.replace("\u200b", "") for element in browser.find_elements(*shown)}
    assert paths == set(scorer.ask("GET", "/openapi.json").json["paths"])
    assert browser.title == "<scorer>"
    browser.find_element(By.ID, "operations-default-get_v2_health_live").find_element(
        By.TAG_NAME, "button"
    ).click()
    execute = By.CSS_SELECTOR, ".execute"
    WebDriverWait(browser, 60).until(lambda _: browser.find_elements(*execute))
    browser.find_element(*execute).click()
    answer = By.CSS_SELECTOR, ".live-responses-table .response-col_status"
    WebDriverWait(browser, 60).until(lambda _: len(browser.find_elements(*answer)) > 1)
    assert browser.find_elements(*answer)[1].text == "200"
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith((scorer.url, "data:")) for name in loaded), loaded
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert [line for line in said if "/favicon.ico" not in line] == []
