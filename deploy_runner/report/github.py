"""Show a run in GitHub Actions: log groups, annotations, and the job summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from ..engine.runs import COUNTED, RunRecord
from ..types import Event, Graph, StageResult
from .folding import fold
from .lines import counts_line, duration, figures_line
from .terminal import PlainReporter

__all__ = ["GithubReporter", "annotation", "job_summary"]


def annotation(level: str, message: str, *, file: str = "", line: int = 0, column: int = 0) -> str:
    """Return a workflow command that puts a message beside a line of a file.

    Escapes as the runner's toolkit does: `%`, CR and LF in the message, `:` and `,` in a property.
    """
    properties = {"file": file, "line": line, "col": column}
    shown = ",".join(f"{k}={_property(str(v))}" for k, v in properties.items() if v)
    return f"::{level}{' ' if shown else ''}{shown}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


class GithubReporter(PlainReporter):
    """Groups each stage's log once it has ended, and annotates failures at their YAML line."""

    def __init__(self, graph: Graph, stream: TextIO, *, log: bool = True) -> None:
        super().__init__(graph, stream, color=False, log=log)
        self._graph = graph
        self._lines: dict[str, list[str]] = {}

    def __call__(self, event: Event) -> None:
        """Keep log lines until their stage ends: stages run side by side, groups can't."""
        if event.kind == "stage-log":
            self._lines.setdefault(event.stage, []).append(event.text)
            return
        super().__call__(event)
        if event.kind != "stage-finished" or event.result is None:
            return
        if lines := self._lines.pop(event.stage, None):
            # A log line that looks like a workflow command must stay a log line.
            body = "\n".join(line.replace("::", ": :") for line in lines)
            self._print(f"::group::{_data(event.stage)}: log\n{body}\n::endgroup::")
        if event.result.state == "failed":
            mark = self._graph.stages[event.stage].mark
            message = f"{event.stage}: {event.result.error}"
            self._print(annotation("error", message, file=mark.file, line=mark.line, column=mark.column))

    def finish(self, results: Mapping[str, StageResult], seconds: float) -> None:
        """Print the counts, unless an error has ended the run before the first stage."""
        if results:
            self._print(counts_line(results, seconds))


def job_summary(record: RunRecord) -> str:
    """Return the run as Markdown for `$GITHUB_STEP_SUMMARY`."""
    data = record.data
    counts = ", ".join(f"{data[state]} {state}" for state in COUNTED if data[state])
    rows = [
        f"### deploy-runner: {_cell(str(data['name']))} ({_cell(str(data['target']))})",
        "",
        f"{counts} in {duration(float(str(data['seconds'])))}",
        "",
        "| stage | state | time | figures |",
        "|---|---|---:|---|",
    ]
    stages = [(id_, None if s.get("error") else str(s["state"])) for id_, s in record.stages.items()]
    for label, index in fold(stages):
        id_ = stages[index][0]
        stage = record.stages[id_]
        figures = stage["figures"] if isinstance(stage["figures"], dict) else {}
        said = str(stage.get("error") or "") or figures_line(figures)
        more = f"{duration(float(str(stage['seconds'])))} | {_cell(said)}" if label == id_ else "|"
        rows.append(f"| {_cell(label)} | {stage['state']} | {more} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("\n", "<br>")
