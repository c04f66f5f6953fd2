"""Show a run in GitHub Actions: log groups, annotations, and the job summary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from ..engine.runs import COUNTED, RunRecord
from ..errors import Problem, counted
from ..types import Event, Graph
from .against import against
from .base import base_run
from .folding import fold
from .headline import Figure, Headline, headline
from .lines import duration, figures_line
from .mermaid import flowchart
from .terminal import PlainReporter

__all__ = ["GithubReporter", "add_to_summary", "annotation", "job_summary", "show_problems"]

_SUMMARY_BYTES = 1_000_000  # GitHub shows nothing of a summary above 1 MiB.
_SHORT_COMMIT = 7


def annotation(level: str, message: str, *, file: str = "", line: int = 0, column: int = 0) -> str:
    """Return a workflow command that puts a message beside a line of a file.

    Escapes as the runner's toolkit does: `%`, CR and LF in the message, `:` and `,` in a property. GitHub
    finds a file by its path in the repository, not in the working directory.
    """
    properties = {"file": file and _in_repository(file), "line": line, "col": column}
    shown = ",".join(f"{k}={_property(str(v))}" for k, v in properties.items() if v)
    return f"::{level}{' ' if shown else ''}{shown}::{_data(message)}"


def _in_repository(file: str) -> str:
    path = Path(os.path.abspath(file))
    workspace = Path(os.environ.get("GITHUB_WORKSPACE") or os.curdir).resolve()
    above = [p for p in path.parents if p.resolve() == workspace or workspace in p.resolve().parents]
    if not above:
        return file
    root = next((p for p in above if (p / ".git").exists()), above[-1])  # `checkout` may have a `path:`.
    return path.relative_to(root).as_posix()


def show_problems(problems: Sequence[Problem], stream: TextIO, environ: Mapping[str, str]) -> None:
    """Annotate what has ended a command before its first stage, and add it to the job summary."""
    for p in problems:
        said = str(Problem(p.message, fix=p.fix))
        print(annotation("error", said, file=p.file, line=p.line, column=p.column), file=stream, flush=True)
    rows = [f"- {_cell(str(problem))}" for problem in problems]
    add_to_summary("\n".join(["### deploy-runner: not run", "", *rows, ""]), environ)


def add_to_summary(text: str, environ: Mapping[str, str]) -> None:
    """Append to the job summary, if GitHub requests one."""
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text)


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


def job_summary(record: RunRecord, environ: Mapping[str, str]) -> str:
    """Return the run as Markdown for `$GITHUB_STEP_SUMMARY`, what has failed first.

    In a pull request the figures are beside those of its base branch.
    """
    data = record.data
    counts = ", ".join(f"{data[state]} {state}" for state in COUNTED if data[state])
    rows = [
        f"### deploy-runner: {_cell(str(data['name']))} ({_cell(str(data['target']))})",
        "",
        f"{counts} in {duration(float(str(data['seconds'])))}",
        "",
        *_head(record, environ),
        *flowchart(record.stages),
        "| stage | state | time | figures |",
        "|---|---|---:|---|",
    ]
    found = sorted(record.stages.items(), key=lambda item: item[1]["state"] != "failed")
    for label, index in fold([(id_, None if s.get("error") else str(s["state"])) for id_, s in found]):
        id_, stage = found[index]
        figures = stage["figures"] if isinstance(stage["figures"], dict) else {}
        said = str(stage.get("error") or "") or figures_line(figures)
        more = f"{duration(float(str(stage['seconds'])))} | {_cell(said)}" if label == id_ else "|"
        rows.append(f"| {_cell(label)} | {stage['state']} | {more} |")
    fits = list(_first(rows))
    if left := len(rows) - len(fits):
        fits += ["", f"The run's report has {counted(left, 'more stage')}."]
    return "\n".join(fits) + "\n"


def _head(record: RunRecord, environ: Mapping[str, str]) -> Iterator[str]:
    said = headline(record)
    yield from (f"- {_cell(sentence.text)}" for sentence in said.sentences)
    yield ""
    branch = environ.get("GITHUB_BASE_REF", "")
    base = base_run(record, branch, environ) if branch else None
    if base is not None:
        yield from _compared(said, headline(base), _cell(branch))
        yield f"Compared with run {base.number} of {_cell(branch)}{_commit(base)}."
        yield ""
        return
    if said.figures:
        yield from ("| figure | this run |", "|---|---:|")
        yield from (f"| {_name(figure)} | {_value(figure)} |" for figure in said.figures)
        yield ""
    if branch:
        yield f"The store has no successful run of {_cell(branch)} with this pipeline to compare with."
        yield ""


def _compared(now: Headline, then: Headline, branch: str) -> Iterator[str]:
    yield from (f"| figure | this run | {branch} | change |", "|---|---:|---:|---:|")
    for figure, earlier, change in against(now, then):
        value = ""
        if earlier is not None:
            value = earlier.value + (f" ({_cell(earlier.of)})" if earlier.of != figure.of else "")
        yield f"| {_name(figure)} | {_value(figure)} | {value} | {change or ('none' if value else '')} |"
    yield ""


def _name(figure: Figure) -> str:
    return figure.name + (f" of {_cell(figure.of)}" if figure.of else "")


def _value(figure: Figure) -> str:
    return f"**{figure.value}**" + (f" ({_cell(figure.reference)})" if figure.reference else "")


def _commit(record: RunRecord) -> str:
    commit = str(record.data.get("commit") or "")
    return f", commit {_cell(commit[:_SHORT_COMMIT])}" if commit else ""


def _first(rows: Sequence[str]) -> Iterator[str]:
    left = _SUMMARY_BYTES
    for row in rows:
        left -= len(row.encode(errors="replace")) + 1
        if left < 0:
            return
        yield row


def _cell(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return escaped.replace("\n", "<br>")
