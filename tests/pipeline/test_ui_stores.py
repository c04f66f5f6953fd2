"""`deploy-runner ui` over stores as they are: empty, of a pipeline that is gone, read-only, large, live."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aws import live_project, local_aws, release
from tests.conftest import TEXT_STAGES, Project
from tests.ui_page import Page, showing

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.write("stages/texts.py", TEXT_STAGES)
    made.write("in.txt", "hello")
    made.pipeline("a: {uses: text.upper, inputs: {text: in.txt}}")
    return made


PAGES = (
    "/",
    "/runs",
    "/compare",
    "/figures",
    "/artifacts",
    "/artifacts?digest=abcd",
    "/deployed",
    "/cleanup",
)


def all_pages(page: Page) -> str:
    runs = re.findall(r'"(/runs/\d[\w-]*)"', page.get("/runs"))
    return "\n".join(page.get(place) for place in (*PAGES, *runs))


def test_an_empty_store_is_said_to_be_empty_and_none_is_created(project: Project) -> None:
    with showing(project.folder) as page:
        assert "no runs yet" in all_pages(page)
    assert not (project.folder / ".deploy-runner").exists()
    (project.folder / ".deploy-runner" / "runs").mkdir(parents=True)
    with showing(project.folder) as page:
        assert "no runs yet" in all_pages(page)
    assert [path.name for path in (project.folder / ".deploy-runner").iterdir()] == ["runs"]


def test_the_runs_of_a_pipeline_that_was_deleted_are_shown(project: Project) -> None:
    project.run()
    (project.folder / "pipeline.yaml").unlink()
    shutil.rmtree(project.folder / "stages")
    with showing(project.folder) as page:
        assert "file is gone" in page.get("/")
        assert "text.upper" in all_pages(page)


def test_a_store_without_its_key_shows_no_run_and_gets_no_new_key(project: Project) -> None:
    project.run()
    key = project.folder / ".deploy-runner" / "secret"
    key.unlink()
    with showing(project.folder) as page:
        assert "can&#39;t be checked: the key of" in all_pages(page)
    assert not key.exists()


def test_a_store_on_a_read_only_disk_is_shown(project: Project, tmp_path: Path) -> None:
    project.run()
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        shutil.copytree(project.folder, disk / "project")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with showing(disk / "project") as page:
            assert "text.upper" in all_pages(page)
            assert "Read-only file system" in page.post("/cleanup")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_of_a_long_log_the_end_is_shown_and_the_whole_can_be_had(project: Project) -> None:
    project.pipeline("a: {uses: text.odd, inputs: {text: in.txt}}")
    run = project.run()["run"]
    folder = project.folder / ".deploy-runner" / "runs" / run
    (folder / "logs").mkdir()
    log = folder / "logs" / "a.log"
    log.write_bytes(b"first\n" + b"\x1b[31mred\x1b[0m \x00\xff<b>\n" * 5_500_000 + b"one\rtwo\n")
    with (folder / "log.jsonl").open("ab") as events:
        events.write(b'{"time": 1, "kind": "stage-log", "text": "x"}\n' * 2_000_000)
    with showing(project.folder) as page:
        shown = page.get(f"/runs/{run}/log?stage=a")
        assert len(shown) < 500_000
        assert "are left out here" in shown
        assert "red \u2400\ufffd&lt;b&gt;\n" in shown
        assert shown.partition("</pre>")[0].endswith("one\ntwo\n")
        assert ">first\n" not in shown
        whole = page.ask(f"/runs/{run}/log.txt?stage=a", authorization=f"Bearer {page.token}")
        assert len(whole.text) > 100_000_000
        assert whole.headers["content-type"].startswith("text/plain")
        (folder / "record.json").unlink()
        assert 'class="state ran"' in page.get(f"/runs/{run}")
        log.unlink()
        log.symlink_to("/etc/hostname")
        assert "has printed nothing" in page.get(f"/runs/{run}/log?stage=a")


def test_what_gc_would_remove_is_shown_and_stays(project: Project) -> None:
    for suffix in range(12):
        project.run("--set", f"stages.a.with.suffix=s{suffix}")
    runs = sorted(path.name for path in (project.folder / ".deploy-runner/runs").iterdir())
    with showing(project.folder) as page:
        found = page.post("/cleanup")
        assert "<dt>Runs</dt><dd>2</dd>" in found
        assert [run for run in runs if f"/runs/{run}" in found] == runs[:2]
    assert sorted(path.name for path in (project.folder / ".deploy-runner/runs").iterdir()) == runs


def test_a_push_is_compared_with_its_remote_when_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_aws(tmp_path / "servers", monkeypatch) as url:
        project = live_project(tmp_path / "project", url)
        made = project.run("--config", "configs/production.yaml")["stages"]["endpoint"]
        with showing(
            project.folder, **{k: v for k, v in project.env.items() if k.startswith("AWS_")}
        ) as page:
            shown = page.get("/deployed")
            (place,) = re.findall(r'action="(/deployed\?pipeline=\w+)"', shown)
            assert "in sync" not in shown
            asked = page.post(place)
            assert "in sync" in asked
            release(project, 3)
            differing = page.post(place)
            assert "differs from the pipeline" in differing
            assert "canary-of-a-secret-key" not in asked + differing + all_pages(page)
            assert made["state"] == "converged" or made["state"] == "ran"


def test_what_is_in_the_way_is_one_sentence(project: Project, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = project.cli("ui", "--port", str(port), exits=2).stderr
    assert said == f"error: 127.0.0.1:{port}: Address already in use (--port 0 takes a free port)\n"
    assert "'70000' is not a port from 0 to 65535" in project.cli("ui", "--port", "70000", exits=2).stderr
    assert (
        "error: stages is a folder (use the pipeline's YAML file)"
        in project.cli("ui", "stages", exits=2).stderr
    )
    at_a_file = project.cli("ui", exits=2, DEPLOY_RUNNER_HOME=str(project.folder / "in.txt")).stderr
    assert at_a_file.endswith("in.txt is a file (set DEPLOY_RUNNER_HOME to a folder)\n")
    elsewhere = Project(tmp_path / "elsewhere")
    assert "error: neither pipeline.yaml nor a store" in elsewhere.cli("ui", exits=2).stderr


def test_without_the_extra_the_verb_says_what_to_install(project: Project, tmp_path: Path) -> None:
    code = (
        "import sys; from importlib.abc import MetaPathFinder\n"
        "from deploy_runner.cli import main\n"
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
        "sys.exit(main(['ui']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True,
                          env={**project.env, "PYTHONPATH": str(tmp_path)}, check=False)  # fmt: skip
    assert done.stderr == "error: ui needs fastapi, uvicorn (pip install 'deploy-runner[serve]')\n"
    assert done.returncode == 2
