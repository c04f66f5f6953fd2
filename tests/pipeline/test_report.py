"""The report of a run: what failed and why comes first, and hostile names never become markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project
from tests.reports import LONG, strange


class Page(HTMLParser):
    """The elements of a page in order, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element."""
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        """A style ends."""
        self._style = False

    def handle_data(self, data: str) -> None:
        """Note what is shown."""
        self.text += "" if self._style else data

    def values(self, name: str) -> list[str]:
        """Return an attribute's values."""
        return [value for _, attrs in self.elements if (value := attrs.get(name)) is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, dict[str, Any], Path]:
    """A run with a choice, a matrix and a failed gate."""
    project = Project(tmp_path_factory.mktemp("report"))
    strange(project)
    done = project.cli("run", exits=1, GITHUB_STEP_SUMMARY=str(project.folder / "summary.md"))
    project.write("screen.txt", done.stdout)
    (folder,) = (project.folder / ".deploy-runner/runs").iterdir()
    data = json.JSONDecoder().raw_decode((folder / "record.json").read_text())[0]
    return Page((folder / "report.html").read_text("utf-8")), data, folder


def test_a_report_begins_with_what_failed_and_was_rejected_and_why(
    run: tuple[Page, dict[str, Any], Path],
) -> None:
    text = run[0].text
    top = text[: text.index("Graph Each box")]
    assert "test for dry-run is incomplete: of 11 stages 1 failed, 1 skipped." in top
    assert (
        "pick chose \"quoted\" 'twice': the fastest (49 µs) of 2 candidates that lose at most 1 point." in top
    )
    assert "gate failed: the cosine similarity falls below 0.5: </pre><script>alert(2)</script> | `x`." in top
    assert "smile 🙂 größe: loses 2.00 points" in top
    for figure in ("98.00 % 99.00 % original", "49 µs 50 µs <script>", "900 B 1000 B <script>"):
        assert figure in top


def test_hostile_names_are_shown_and_are_no_markup(run: tuple[Page, dict[str, Any], Path]) -> None:
    page = run[0]
    assert not [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "embed", "link")]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert all(target.startswith("#") for target in page.values("href"))
    assert "again[_script_alert_1___script_]" in page.text
    assert "1<script>alert(1)</script> 99.00 %" in page.text
    assert "3smile 🙂 größe 97.00 %" in page.text
    assert " ".join(LONG.split()) in page.text


def test_every_link_leads_to_a_place_in_the_page(run: tuple[Page, dict[str, Any], Path]) -> None:
    from urllib.parse import unquote

    page = run[0]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    lost = {t for t in page.values("href") if t[1:] not in ids and unquote(t[1:]) not in ids}
    assert not lost
    assert next(tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)) == "h1"
    assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")


def test_a_report_shows_the_critical_path_the_tolerance_the_log_and_the_commands(
    run: tuple[Page, dict[str, Any], Path],
) -> None:
    page, data, _ = run
    assert (
        data["stages"]["first"]["start"] < data["stages"]["pick"]["start"] < data["stages"]["gate"]["start"]
    )
    assert data["stages"]["gate"]["after"] == ["pick"]
    path = page.text[page.text.index("The critical path") : page.text.index("Where the time went")]
    assert re.search(r"first .* → many\[\d\] .* → pick .* → gate ", path)
    assert "0.250000 ≥ 0.5: not kept" in page.text
    assert "log </pre><script>alert(2)</script> | `x`" in page.text
    assert "deploy-runner get pipeline.yaml first.model --run 1" in page.text
    assert "many (3 instances)" in page.text


def test_a_report_is_written_without_numpy(chain: Project) -> None:
    imported = chain.cli("run", PYTHONPROFILEIMPORTTIME="1").stderr
    assert re.search(r"\| +grandalf\.layouts$", imported, re.MULTILINE)
    assert "numpy._core" not in imported


def test_the_job_summary_begins_with_the_same_and_draws_the_graph(
    run: tuple[Page, dict[str, Any], Path],
) -> None:
    text = (run[2].parents[2] / "summary.md").read_text()
    head, _, rest = text.partition("```mermaid\n")
    graph, _, table = rest.partition("```\n")
    assert "- test for dry-run is incomplete: of 11 stages 1 failed, 1 skipped.\n- pick chose" in head
    assert "| figure | this run |" in head
    assert "\n| accuracy of \"quoted\" 'twice' | **98.00 %** (99.00 % original) |\n" in head
    assert "<script>" not in head + graph
    assert "many #40;3 instances#41;<br><small>ran, up to" in graph
    assert graph.count(":::") == 6
    assert ":::failed" in graph
    assert table.startswith("\n| stage | state | time | figures |\n")


def test_the_last_screen_says_what_the_report_begins_with_in_ten_short_lines(
    run: tuple[Page, dict[str, Any], Path],
) -> None:
    screen = (run[2].parents[2] / "screen.txt").read_text().splitlines()
    last = next(n for n, line in enumerate(screen) if line.startswith("11 stages: "))
    shown = screen[last:]
    assert len(shown) <= 10
    assert max(map(len, shown)) <= 80
    assert not re.search(r"[\x1b→✓✗·…]", "".join(shown))
    said = " ".join(shown)
    assert "test for dry-run is incomplete: of 11 stages 1 failed, 1 skipped. pick chose" in said
    assert (
        "49 µs) of 2 candidates that lose at most 1 point. gate failed: the cosine similarity falls" in said
    )
    assert "accuracy 98.00 % (99.00 % original), latency 49 µs (50 µs" in said
    assert "This is the first recorded run of this pipeline." in said


@pytest.mark.slow
def test_the_last_screen_says_what_changed_and_shortens_what_is_long(project: Project) -> None:
    strange(project)
    text = (project.folder / "pipeline.yaml").read_text().replace("loss: 0.75", "loss: 0.25")
    (project.folder / "pipeline.yaml").write_text(text)
    project.cli("run", exits=0)
    file = project.folder / "stages/odd.py"
    file.write_text(file.read_text().replace("99.0 - n,", "98.0 - n,").replace("1000 - 100", "2000 - 100"))
    sets = ("--set", f"name={LONG.strip()}", "--set", "stages.gate.with.loss=0.75")
    shown = project.cli("run", *sets, exits=1).stdout.splitlines()[-9:]
    said = " ".join(shown)
    assert "Changed since run 1: accuracy was 98.00 %; size was 900 B; first: " in said
    assert any(line.endswith(" ...") and len(line) <= 80 for line in shown)
