"""The page of a model that takes raw input: drop a picture, fill in a row, see labels and the curl line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.conftest import run
from tests.serve import models
from tests.serve.raw_inputs import PICTURES, ROWS, declared, encoded
from tests.serve.server import Server, serving


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("colours")
    io = declared(folder / "io", **PICTURES)
    with serving(models.colours(folder / "model"), "--io", io, folder=folder) as server:
        yield server


def _by_curl(browser: WebDriver, folder: Path) -> Any:
    line = browser.find_element(By.ID, "curl").text
    assert line.startswith("curl http://")
    done = subprocess.run(["sh", "-c", f"{line} -sf"], cwd=folder, capture_output=True, check=True)
    return json.loads(done.stdout)


def _seen(browser: WebDriver) -> list[list[str]]:
    rows = browser.find_elements(By.CSS_SELECTOR, "#outputs tr")
    return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td:last-child")] for row in rows]


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], "a b.png", {type: "image/png"}));
document.getElementById("drop-image").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
"""


@pytest.mark.parametrize("how", ["chosen", "dropped"])
def test_a_picture_is_answered_with_labels_bars_and_the_curl_line(
    browser: Any, colours: Server, tmp_path: Path, how: str
) -> None:
    import base64

    data = encoded(Image.new("RGB", (20, 30), (30, 200, 90)), "PNG")
    (tmp_path / "a b.png").write_bytes(data)
    browser.get_log("browser")
    browser.get(colours.url)
    if how == "chosen":
        browser.find_element(By.ID, "raw-image").send_keys(str(tmp_path / "a b.png"))
    else:
        browser.execute_script(DROP, base64.b64encode(data).decode())
    assert run(browser).startswith("answered in ")
    answer = colours.ask("POST", "/predict", raw=data, headers={"content-type": "image/png"}).json
    assert browser.find_element(By.ID, "prediction").text == "<green>" == answer["prediction"]
    shown = [[one["label"], f"{100 * one['score']:.1f} %"] for one in answer["classes"]]
    assert _seen(browser) == shown
    meters = browser.find_elements(By.TAG_NAME, "meter")
    assert float(meters[0].get_attribute("value")) == pytest.approx(answer["score"])
    size = "const i = document.querySelector('#preview-image img'); return [i.naturalWidth, i.naturalHeight]"
    assert browser.execute_script(size) == [20, 30]
    assert _by_curl(browser, tmp_path) == answer
    assert [e["message"] for e in browser.get_log("browser") if "favicon.ico" not in e["message"]] == []


def test_what_is_no_picture_is_said(browser: WebDriver, colours: Server, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    browser.get(colours.url)
    browser.find_element(By.ID, "raw-image").send_keys(str(tmp_path / "a.png"))
    assert run(browser) == "the picture is none of JPEG, PNG, WEBP, or is damaged"
    assert browser.find_element(By.ID, "status").get_attribute("class") == "failed"


def test_tensors_are_under_the_raw_input(browser: WebDriver, colours: Server) -> None:
    browser.get(colours.url)
    assert not browser.find_element(By.ID, "input-0").is_displayed()
    browser.find_element(By.TAG_NAME, "summary").click()
    browser.find_element(By.CSS_SELECTOR, "#form button").click()
    status = browser.find_element(By.ID, "status")
    WebDriverWait(browser, 60).until(lambda _: status.text.startswith("answered in "))
    assert browser.find_element(By.TAG_NAME, "caption").text == "shares"


def test_a_row_is_filled_in(browser: WebDriver, tmp_path: Path) -> None:
    io = declared(tmp_path / "io", **ROWS)
    with serving(models.scorer(tmp_path / "model"), "--io", io, folder=tmp_path) as server:
        browser.get(server.url)
        browser.find_element(By.ID, "column-size").send_keys("2.5")
        browser.find_element(By.ID, "column-other").send_keys("4")
        browser.find_element(By.CSS_SELECTOR, "#column-kind option:nth-child(3)").click()
        browser.find_element(By.CSS_SELECTOR, "#column-heavy option:nth-child(2)").click()
        run(browser)
        assert browser.find_element(By.ID, "prediction").text == "6.5"
        assert _by_curl(browser, tmp_path) == {"prediction": 6.5}
        browser.find_element(By.CSS_SELECTOR, "#column-kind option:nth-child(2)").click()
        run(browser)
        WebDriverWait(browser, 60).until(lambda _: "it" in browser.find_element(By.ID, "curl").text)
        assert _by_curl(browser, tmp_path) == {"prediction": 4.0}
