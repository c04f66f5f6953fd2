"""The site of the docs, built as `make docs` does it, and what is in its pages."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

from tests.conftest import ROOT

__all__ = ["Page", "built", "served"]


def built(folder: Path) -> Path:
    """Build the site from a copy of the docs in `folder`; return where its pages are."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", folder)
    command = re.findall(r"-m (zensical .+)", (ROOT / "Makefile").read_text())[0].split()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "docs", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "build/site"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback; yield its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Print nothing."""


class Page(HTMLParser):
    """What one page has: its title, its headings, and the addresses that a browser loads by itself."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.title = ""
        self.headings: list[int] = []
        self.loaded: list[str] = []
        self.classes: set[str] = set()
        self._in_title = self._in_article = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a heading of the article, or what the tag loads."""
        given = {name: value or "" for name, value in attrs}
        self.classes.update(given.get("class", "").split())
        self._in_title = tag == "title" and not self.title
        self._in_article |= tag == "article"
        if self._in_article and re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        loads = {
            "link": "href",
            "script": "src",
            "img": "src",
            "iframe": "src",
            "source": "src",
            "object": "data",
        }
        if given.get(loads.get(tag, ""), "") and given.get("rel", "") not in ("next", "prev", "canonical"):
            self.loaded.append(given[loads[tag]])

    def handle_endtag(self, tag: str) -> None:
        """Leave the article or the title."""
        self._in_title &= tag != "title"
        self._in_article &= tag != "article"

    def handle_data(self, data: str) -> None:
        """Take the title's text."""
        if self._in_title:
            self.title += data
