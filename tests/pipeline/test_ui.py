"""`deploy-runner ui`: who may read the page, and what it shows of a store."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy_runner.store.actions import Records
from tests.conftest import Project
from tests.ui_page import Page, run_twice, showing


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return run_twice(tmp_path_factory.mktemp("ui"))


def home(project: Project) -> Path:
    return project.folder / ".deploy-runner"


def runs_of(project: Project) -> list[str]:
    return sorted(path.name for path in (home(project) / "runs").iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def signed(project: Project, run: str, **changes: object) -> None:
    """Write the record of a run as this store would, with these members."""
    first = home(project) / "runs" / runs_of(project)[0] / "record.json"
    data = json.loads(first.read_bytes()) | {"id": run} | changes
    del data["mac"]
    body = json.dumps(data, separators=(",", ":")).encode()
    folder = home(project) / "runs" / run
    folder.mkdir()
    (folder / "record.json").write_bytes(Records(home(project)).seal.signed(body, "run", run))


@pytest.fixture(scope="module")
def page(project: Project) -> Iterator[Page]:
    before = tree(home(project))
    with showing(project.folder) as shown:
        yield shown
    assert tree(home(project)) == before, "the page has written into the store"


def test_only_the_one_who_has_the_token_reads_the_page(page: Page) -> None:
    answer = page.ask("/")
    assert (answer.status, answer.text.partition(":")[0]) == (403, "This page needs its token")
    assert page.ask("/?token=wrong").status == 403
    assert page.ask("/static/ui.css").status == 403
    entered = page.ask(f"/runs?page=1&token={page.token}")
    assert 'url=/runs?page=1"' in entered.text
    assert page.token not in entered.text
    cookie = entered.headers["set-cookie"]
    assert cookie.endswith("; Path=/; HttpOnly; SameSite=Strict")
    cookie = cookie.partition(";")[0]
    assert page.ask("/", cookie=cookie).status == 200
    assert page.ask("/", cookie=cookie, sec_fetch_site="cross-site").status == 403
    assert page.ask("/", cookie=cookie, sec_fetch_site="same-site").status == 403


def test_a_name_that_was_made_to_lead_here_and_another_origin_are_refused(page: Page) -> None:
    bearer = f"Bearer {page.token}"
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1:1", "", f"127.0.0.1.:{page.port}"):
        assert page.ask("/", authorization=bearer, host=host).status in (400, 403), host
    assert page.ask("/", authorization=bearer, host=f"localhost:{page.port}").status == 200
    assert page.ask("/", authorization=bearer, origin="http://evil.example").status == 403
    assert page.ask("/cleanup", "POST", authorization=bearer).status == 403
    assert page.ask("/cleanup", "POST", authorization=bearer, origin="null").status == 403
    assert page.ask("/runs", "DELETE", authorization=bearer).status == 405
    answer = page.ask("/", "OPTIONS", origin="http://evil.example")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    headers = page.ask("/", authorization=bearer).headers
    assert "unsafe" not in headers["content-security-policy"]
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


def test_runs_are_shown_with_their_graph_their_reasons_and_their_figures(
    project: Project, page: Page
) -> None:
    old, new = runs_of(project)
    assert "test" in page.get("/")
    assert f"/runs/{new}" in page.get("/runs")
    shown = page.get(f"/runs/{new}")
    assert 'aria-label="b (2 instances): text.upper, ran' in shown
    assert "3 is more than 2" in shown
    compared = page.get(f"/compare?a={old}&b={new}")
    assert "<li>`with.suffix` &#34;!&#34; → &#34;more&#34;</li>" in compared
    assert "<dt>letters</dt><dd>1 → 4 <small>(+300.0 %)</small>" in compared
    assert "4 of 4 stages differ" in compared
    figures = page.get("/figures?of=a/letters")
    assert figures.count("<circle") == 2
    assert page.get("/figures?of=b/letters").count('class="bar"') == 2
    (digest,) = set(
        re.findall(r"/artifacts/(\w{64})", shown.partition("b[yy]</span>")[2].partition("</tr>")[0])
    )
    lineage = page.get(f"/artifacts/{digest}")
    assert "a.text" in lineage
    assert "<code>in.txt</code>" in lineage
    assert f"/artifacts/{digest}" in page.get(f"/artifacts?digest={digest[:8].upper()}")


def test_a_record_that_is_damaged_forged_or_of_another_version_is_listed_as_unreadable(
    tmp_path: Path, project: Project
) -> None:
    other = Project(tmp_path / "copy")
    shutil.copytree(project.folder, other.folder, dirs_exist_ok=True)
    first = runs_of(other)[0]
    folder, names = home(other) / "runs", [f"00001{n}-20260101T000000-abcd" for n in range(7)]
    record = (folder / first / "record.json").read_bytes()
    forged = record.replace(first.encode(), names[1].encode())
    for name, content in zip(names, (record[:-9], forged, b"", b"[" * 100_000), strict=False):
        (folder / name).mkdir()
        (folder / name / "record.json").write_bytes(content)
    signed(other, names[4], schema=2)
    signed(other, names[5], stages=["<script>"])
    signed(
        other, names[6], name="<script>alert(1)</script>" + "\U0001f600" * 300, target="\x1b[31mred\x00\u202e"
    )
    (folder / "000018-20260101T000000-abcd").symlink_to(folder / first)
    (folder / "000019-20260101T000000-abcd").mkdir()
    shutil.copytree(folder / first, folder / "000020-20260101T000000-abcd", ignore=lambda *_: ["record.json"])
    with showing(other.folder) as page:
        shown = page.get("/runs")
        assert shown.count("its record is damaged, or was not written by this store") == 4
        assert shown.count("its record is of another version") == 2
        assert shown.count("it has no record") == 1
        assert "000018-" not in shown
        assert "stopped" in shown
        assert "text.upper" not in page.get("/runs/000020-20260101T000000-abcd"), "an outline of another run"
        for name in names:
            assert "<script>" not in page.get(f"/runs/{name}").partition("</head>")[2]
        last = page.get(f"/runs/{names[6]}")
        assert "target red\u2400\ufffd" in last
        for path in ("/", "/compare", "/figures", "/artifacts", "/deployed"):
            page.get(path)
        assert (
            page.ask("/runs/000018-20260101T000000-abcd", authorization=f"Bearer {page.token}").status == 404
        )
        log = page.ask(f"/runs/{first}/log?stage=../record", authorization=f"Bearer {page.token}")
        assert log.status == 404
