"""Choose who shows a run, by where its output goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

from ..types import Graph
from .terminal import LiveReporter, PlainReporter, Reporter

__all__ = ["choose"]


def choose(
    graph: Graph, environ: Mapping[str, str], *, stream: TextIO | None = None, log: bool = False
) -> Reporter:
    """Return the reporter that fits where the output goes: Actions, a terminal, or a file."""
    stream = stream or sys.stdout
    if environ.get("GITHUB_ACTIONS") == "true":
        from .github import GithubReporter

        return GithubReporter(graph, stream, log=True)
    terminal = stream.isatty() and environ.get("TERM") != "dumb"
    color = terminal and not environ.get("NO_COLOR")
    kind = LiveReporter if terminal and os.name == "posix" else PlainReporter
    return kind(graph, stream, color=color, log=log)
