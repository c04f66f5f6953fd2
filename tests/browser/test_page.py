"""The page at /, in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.conftest import run
from tests.serve import models
from tests.serve.server import Server, serving


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("scorer")
    with serving(models.scorer(folder / "model"), "--name", "<scorer>", folder=folder) as server:
        yield server


def test_the_page_shows_the_inputs_and_runs_the_example(browser: WebDriver, scorer: Server) -> None:
    browser.get(scorer.url)
    assert browser.title == "<scorer>"
    labels = [label.text for label in browser.find_elements(By.TAG_NAME, "label")]
    assert labels == ["ids: int64 of shape [batch, 2]", "weights: float32 of shape [batch, 2]"]
    assert run(browser).startswith("answered in ")
    assert browser.find_element(By.TAG_NAME, "caption").text == "score"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#outputs tr")) == 1


def test_what_is_typed_is_run(browser: WebDriver, scorer: Server) -> None:
    browser.get(scorer.url)
    for index, text in enumerate(("[[2, 3], [0, 1]]", "[[10, 1], [5, 5]]")):
        area = browser.find_element(By.ID, f"input-{index}")
        area.clear()
        area.send_keys(text)
    run(browser)
    assert [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#outputs tr")] == ["0 23", "1 5"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("[[1.5, 2]]", "input 'ids' takes int64 of shape [batch, 2]; floats were given", id="a refusal"),
        pytest.param("[[", "ids is not JSON: ", id="no JSON"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_beside_the_button(
    browser: WebDriver, scorer: Server, text: str, said: str
) -> None:
    browser.get(scorer.url)
    area = browser.find_element(By.ID, "input-0")
    area.clear()
    area.send_keys(text)
    assert run(browser).startswith(said)
    assert browser.find_element(By.ID, "status").get_attribute("class") == "failed"
    assert browser.find_elements(By.CSS_SELECTOR, "#outputs tr") == []


def test_the_page_loads_nothing_from_elsewhere_and_breaks_no_policy(browser: Any, scorer: Server) -> None:
    browser.get_log("browser")
    browser.get(scorer.url)
    run(browser)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(scorer.url) for name in loaded)
    assert (
        browser.execute_script("return getComputedStyle(document.querySelector('textarea')).width") != "0px"
    )
    complaints = [e["message"] for e in browser.get_log("browser") if "favicon.ico" not in e["message"]]
    assert complaints == []
    policy = scorer.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_field_has_a_label_and_the_page_a_language(browser: WebDriver, scorer: Server) -> None:
    browser.get(scorer.url)
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    for area in browser.find_elements(By.TAG_NAME, "textarea"):
        assert browser.find_elements(By.CSS_SELECTOR, f"label[for={area.get_attribute('id')}]")
    assert browser.find_element(By.ID, "status").get_attribute("role") == "status"


def test_the_example_of_the_digits_is_a_reference_sample(
    browser: WebDriver, digits: models.Digits, tmp_path: Path
) -> None:
    with serving(digits.onnx, "--reference", digits.bundle, folder=tmp_path) as server:
        browser.get(server.url)
        example = str(browser.find_element(By.ID, "input-0").get_attribute("value"))
        assert example.startswith("[[[[")
        run(browser)
        cells = browser.find_elements(By.CSS_SELECTOR, "#outputs td")
    assert len(cells) == 10


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> models.Digits:
    return models.digits(tmp_path_factory.mktemp("digits"))
