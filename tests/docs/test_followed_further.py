"""What pages say of a browser and of GitHub's machines is done in Chromium, and by the jobs of the workflow."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.actions import ActionsCache, Job, run_job
from tests.browser.conftest import browser as browser
from tests.conftest import ROOT
from tests.docs.reader import Reader

pytestmark = pytest.mark.slow

HOW_TO = ROOT / "docs/how-to"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Print nothing."""


def test_the_page_for_browsers_recognises_a_picture(tmp_path: Path, browser: WebDriver) -> None:
    reader = Reader(tmp_path / "reader" / "project", {})
    reader.follows(HOW_TO / "browser.md")
    handler = functools.partial(_Quiet, directory=str(reader.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/index.html")
        chooser = browser.find_element(By.CSS_SELECTOR, "input")
        loaded = "return document.querySelector('input').onchange !== null"
        WebDriverWait(browser, 60).until(lambda b: b.execute_script(loaded))
        chooser.send_keys(str(reader.folder / "examples/digits/pictures/seven/1.png"))
        answer = browser.find_element(By.ID, "answer")
        WebDriverWait(browser, 60).until(lambda _: answer.text)
        assert answer.text == "seven 1.000"
        server.shutdown()
    assert "it shows `seven 1.000`" in (HOW_TO / "browser.md").read_text()


def test_the_workflow_of_the_page_checks_a_pull_request(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "reader" / "project", {})
    reader.follows(HOW_TO / "github-actions.md")
    job = Job(reader.folder, ActionsCache(tmp_path / "cache"), event="pull_request", ref="refs/pull/1/merge")
    done = run_job(reader.folder / ".github/workflows/deploy.yml", "dry-run", job)
    assert done.success, done.log
    assert "endpoint" in done.summary
