"""The page of `deploy-runner ui`, in a real Chromium: load, a live run, comparison, a thousand runs, keyboard alone."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from deploy_runner.store.actions import Records
from tests.browser.axe import complaints, violations
from tests.conftest import TEXT_STAGES, Project
from tests.ui_page import Page, run_twice, showing

pytestmark = pytest.mark.slow

WAIT_S = 60
LIVE = """
first: {uses: text.upper, inputs: {text: in.txt}}
slow: {uses: text.odd, inputs: {text: "${{ stages.first.outputs.text }}"}, with: {how: sleep-child, path: "300"}}
last: {uses: text.upper, inputs: {text: "${{ stages.slow.outputs.text }}"}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return run_twice(tmp_path_factory.mktemp("ui"))


@pytest.fixture(scope="module")
def page(project: Project) -> Iterator[Page]:
    with showing(project.folder) as shown:
        yield shown


def runs_of(project: Project) -> list[str]:
    return sorted(path.name for path in (project.folder / ".deploy-runner/runs").iterdir())


def opened(browser: WebDriver, page: Page) -> None:
    """Open the address that was printed, and wait until the page without the token has come."""
    browser.get(page.address)
    WebDriverWait(browser, WAIT_S).until(lambda _: browser.title.startswith("Overview"))
    browser.get_log("browser")  # type: ignore[attr-defined]


def test_every_page_is_accessible_fits_and_loads_nothing_from_elsewhere(
    browser: Any, project: Project, page: Page
) -> None:
    opened(browser, page)
    old, new = runs_of(project)
    assert page.token not in browser.current_url
    digest = json.loads((project.folder / f".deploy-runner/runs/{new}/record.json").read_text())
    made = digest["stages"]["a"]["outputs"]["text"]
    places = ["/", "/runs", f"/runs/{new}", f"/runs/{new}/log?stage=a", "/compare", f"/compare?a={old}&b={new}",
              "/figures", "/figures?of=b/letters", "/artifacts", f"/artifacts/{made}", "/deployed", "/cleanup"]  # fmt: skip
    for dark in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": dark}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        for width in (1280, 390):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            for place in places:
                browser.get(page.url + place)
                assert violations(browser) == [], (place, dark, width)
                wide = browser.execute_script("return document.documentElement.scrollWidth")
                assert wide <= width, (place, width)
                assert len(browser.find_elements(By.TAG_NAME, "h1")) == 1
                loaded = browser.execute_script(
                    "return performance.getEntriesByType('resource').map(e => e.name)"
                )
                assert all(name.startswith(page.url) for name in loaded)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert complaints(browser) == []


def press(browser: Any, *keys: str) -> None:
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def tab_to(browser: Any, label: str) -> None:
    """Press Tab until what has this text, or this label, has the focus."""
    for _ in range(80):
        press(browser, Keys.TAB)
        element = browser.switch_to.active_element
        if label in (element.text, element.get_attribute("aria-label")):
            return
    raise AssertionError(f"Tab did not lead to {label}")


def until(browser: Any, is_so: Callable[[], object]) -> None:
    WebDriverWait(browser, WAIT_S).until(lambda _: is_so())


def test_two_runs_are_compared_by_the_keyboard_alone(browser: Any, page: Page) -> None:
    opened(browser, page)
    tab_to(browser, "Skip to the content")
    press(browser, Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "content"
    browser.get(page.url + "/runs")
    tab_to(browser, "compare run 1 as A")
    tab_to(browser, "compare run 2 as B")
    tab_to(browser, "Compare A with B")
    press(browser, Keys.ENTER)
    until(browser, lambda: browser.title == "Runs 1 and 2: deploy-runner")
    assert "`with.suffix`" in browser.find_element(By.TAG_NAME, "main").text
    tab_to(browser, "Run 2")
    press(browser, Keys.ENTER)
    until(browser, lambda: browser.title.startswith("Run 2"))
    box = browser.find_element(By.CSS_SELECTOR, ".graph a.failed")
    tab_to(browser, box.get_attribute("aria-label"))
    press(browser, Keys.ENTER)
    until(browser, lambda: browser.current_url.endswith("#stage-bad"))
    assert complaints(browser) == []


def test_a_run_is_followed_until_its_end(browser: Any, tmp_path: Path) -> None:
    live = Project(tmp_path / "live")
    live.write("stages/texts.py", TEXT_STAGES)
    live.write("in.txt", "hello")
    live.pipeline(LIVE)
    with showing(live.folder) as page:
        opened(browser, page)
        assert "no runs yet" in browser.find_element(By.TAG_NAME, "main").text
        done = live.run("first")["run"]
        until(browser, lambda: "succeeded" in browser.execute_script("return document.body.innerText"))
        running = live.start("run")
        try:
            until(browser, lambda: 'class="state running"' in page.get("/runs"))
            (run,) = set(runs_of(live)) - {done}
            browser.get(f"{page.url}/runs/{run}")
            states = "return [...document.querySelectorAll('[data-part=state]')].map(e => e.textContent)"
            until(browser, lambda: browser.execute_script(states) == ["hit", "running", "waiting"])
            until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".graph a.running"))
            said = "1 of 3 stages have ended, 1 running"
            until(browser, lambda: browser.find_element(By.ID, "live").text == said)
            browser.execute_script("window.open(arguments[0])", f"/runs/{run}/log?stage=slow")
            browser.switch_to.window(browser.window_handles[1])
            until(browser, lambda: browser.find_element(By.ID, "log").text == "begun")
            running.send_signal(signal.SIGINT)
            until(browser, lambda: browser.find_element(By.ID, "live").text == "The run has ended.")
            browser.close()
            browser.switch_to.window(browser.window_handles[0])
            until(browser, lambda: browser.execute_script(states) == ["hit", "interrupted", "interrupted"])
            assert not browser.find_elements(By.ID, "live")
        finally:
            running.kill()
            running.communicate()
        assert complaints(browser) == []


def test_a_thousand_runs_are_listed_in_pages(browser: Any, project: Project, tmp_path: Path) -> None:
    many = Project(tmp_path / "many")
    shutil.copytree(project.folder, many.folder, dirs_exist_ok=True)
    folder = many.folder / ".deploy-runner" / "runs"
    data = json.loads((folder / runs_of(many)[1] / "record.json").read_text())
    del data["mac"]
    seal = Records(folder.parent).seal
    for number in range(3, 1001):
        data |= {"id": f"{number:06d}-20261130T000000-abcd", "exit_code": number % 2}
        data["stages"]["a"]["figures"]["letters"] = number
        (folder / data["id"]).mkdir()
        body = json.dumps(data, separators=(",", ":")).encode()
        (folder / data["id"] / "record.json").write_bytes(seal.signed(body, "run", data["id"]))
    with showing(many.folder) as page:
        opened(browser, page)
        browser.find_element(By.LINK_TEXT, "All 1000 runs").click()
        first = "return document.querySelector('tbody a').textContent"
        until(browser, lambda: browser.execute_script(first) == "1000")
        assert violations(browser) == []
        browser.find_element(By.LINK_TEXT, "Older").click()
        until(browser, lambda: browser.execute_script(first) == "950")
        browser.get(f"{page.url}/runs?page=20")
        assert browser.execute_script(first) == "50"
        assert not browser.find_elements(By.LINK_TEXT, "Older")
        browser.get(f"{page.url}/figures?of=a/letters")
        assert len(browser.find_elements(By.CSS_SELECTOR, "svg circle")) == 200
        assert complaints(browser) == []
