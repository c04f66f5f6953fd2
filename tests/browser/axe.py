"""What a browser complains of on a page, and what axe does."""

from __future__ import annotations

import importlib.resources
from typing import Any

__all__ = ["complaints", "headings", "violations"]


def complaints(browser: Any) -> list[str]:
    """Return what the console has had since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]


def violations(browser: Any) -> list[str]:
    """Return what axe finds on the page, each with the element."""
    axe = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    return [f"{v['id']}: {node['html'][:200]}" for v in found["violations"] for node in v["nodes"]]


def headings(browser: Any) -> list[int]:
    """Return the levels of the headings in their order."""
    script = "return [...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(e => Number(e.tagName[1]))"
    levels: list[int] = browser.execute_script(script)
    return levels
