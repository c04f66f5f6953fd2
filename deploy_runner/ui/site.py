"""What the pages have in common: the store, the pipeline that was named, the templates."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse

from ..errors import DeployRunnerError
from ..pipeline.identity import describe, is_there
from ..report.lines import duration, size
from ..store.counter import number_of
from .asking import Asker
from .library import Library
from .text import moment, number, visible

__all__ = ["HERE", "Site"]

HERE = Path(__file__).parent


class Site:
    """The store in `home`, and the pipeline beside which it lies or that names it."""

    def __init__(self, home: Path, pipeline: Path) -> None:
        self.home = home
        self.pipeline = pipeline
        self.library = Library(home)
        self.asker = Asker(Path(os.getcwd()))
        self.closing = False
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: visible(value) if type(value) is str else value,
        )
        self._templates.filters["run_number"] = number_of
        self._templates.globals.update(
            duration=duration, size=size, number=number, moment=moment, described=self.described
        )

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page from its template."""
        text = self._templates.get_template(name).render(home=os.fspath(self.home), **values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def described(self, files: tuple[str, ...]) -> str:
        """Return a pipeline by its paths, as they are from here."""
        return describe(files, self.home) if files else ""

    def exists(self, files: tuple[str, ...]) -> bool:
        """Say whether the files of a pipeline still exist."""
        return bool(files) and is_there(files, self.home)

    def warm(self) -> None:
        """Read the records of all runs in a thread of its own, so that the first list comes at once."""
        Thread(target=self._read_all, daemon=True, name="warm").start()

    def _read_all(self) -> None:
        try:
            for _ in self.library.runs():
                if self.closing:
                    return
        except DeployRunnerError:
            return  # The page that needs them says why.

    def close(self) -> None:
        """End what still runs."""
        self.closing = True
        self.asker.stop()
