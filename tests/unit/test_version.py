"""`--version` says what is installed from where, and never fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment

PYTHON = ".".join(map(str, sys.version_info[:3]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that has this package alone."""
    folder = tmp_path_factory.mktemp("site packages")
    ignored = shutil.ignore_patterns("__pycache__", "stages")
    shutil.copytree(ROOT / "deploy_runner", folder / "deploy_runner", ignore=ignored)
    info = folder / "deploy_runner-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: deploy-runner\nVersion: 0.1.0\n")
    return folder


def printed(place: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "deploy_runner", "--version"], cwd=place.parent, capture_output=True, text=True,
        check=False, env={**clean_environment(), "PYTHONPATH": str(place), **env},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("direct", "said"),
    [
        (None, "from a package index"),
        ({"url": "file:///a%20b/deploy_runner.whl", "archive_info": {}}, "from /a b/deploy_runner.whl"),
        (
            {"url": "https://me:secret@example.org/x.whl", "archive_info": {}},
            "from https://example.org/x.whl",
        ),
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
            "commit c0ffee of https://example.org/r.git",
        ),
        ({"url": "file:///elsewhere", "dir_info": {"editable": True}}, "not installed"),
        ({"url": "file://SITE", "dir_info": {"editable": True}}, "editable"),
    ],
)
def test_the_version_says_how_it_was_installed(
    direct: dict[str, object] | None, said: str, site: Path
) -> None:
    file = site / "deploy_runner-0.1.0.dist-info/direct_url.json"
    file.unlink(missing_ok=True)
    if direct is not None:
        file.write_text(json.dumps(direct).replace("SITE", str(site).replace(" ", "%20")))
    place = site / "deploy_runner"
    assert printed(site) == f"deploy-runner 0.1.0 (Python {PYTHON}, {said}, {place})\n"


@pytest.mark.parametrize("text", ["{", "[]", '{"url": 1}', '{"url": "x", "vcs_info": {}}', "\x00"])
def test_damaged_metadata_leaves_the_version_alone(text: str, site: Path) -> None:
    (site / "deploy_runner-0.1.0.dist-info/direct_url.json").write_text(text)
    assert printed(site) == "deploy-runner 0.1.0\n"


def test_a_folder_or_a_zip_that_nobody_installed_has_a_version_too(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(site / "deploy_runner", copy / "deploy_runner")
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", copy)
    for place in (copy, Path(archive)):
        line = printed(place)
        assert line == "deploy-runner 0.1.0\n" or ", not installed, " in line
