"""docs/index.md, how-to and coming-from: every pipeline compiles, every command does what its page shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest

from deploy_runner.local.servers import dry_run
from deploy_runner.pipeline.compiled import compile_pipeline
from tests.conftest import ROOT
from tests.docs.reader import Reader, blocks

PAGES = sorted(p for room in ("how-to", "coming-from") for p in (ROOT / "docs" / room).glob("*.md"))
NAMES = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


@pytest.fixture
def remotes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """The environment of somebody whose production is an AWS and a Hub on this machine."""
    page = request.getfixturevalue("page").read_text()
    if "configs/production.yaml" not in page and "s3://" not in page:
        yield {}
        return
    with dry_run(tmp_path / "servers", services=("aws", "hub"), log=lambda line: None) as env:
        where = {"LocationConstraint": "eu-central-1"}
        s3 = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], aws_access_key_id="x",
                          aws_secret_access_key="y", region_name="eu-central-1")  # fmt: skip
        for bucket in ("your-models", "your-cache"):
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
        yield env


def test_every_pipeline_of_the_guides_compiles(tmp_path: Path) -> None:
    compiled = 0
    reader = Reader(tmp_path / "reader" / "project", {})
    (reader.folder / "film-reviews").mkdir()  # The page has a script that writes it.
    for page in PAGES:
        for block in blocks(page):
            if reader.writes(block) == "pipeline.yaml":
                pipeline = reader.folder / "pipeline.yaml"
                assert compile_pipeline(pipeline, environ={"HF_TOKEN": "hf"}).stages, page.name
                compiled += 1
    assert compiled >= len(PAGES) - 2


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_commands_of_a_guide_do_what_it_shows(
    page: Path, tmp_path: Path, remotes: Mapping[str, str]
) -> None:
    Reader(tmp_path / "reader" / "project", remotes).follows(page)


@pytest.mark.slow
def test_the_first_ten_minutes_go_as_the_page_shows(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "reader" / "project", {})
    digits = ROOT / "examples/digits"
    shutil.rmtree(reader.folder / "examples")  # Somebody's project has one model of its own.
    shutil.copy(digits / "model.py", reader.folder)
    (reader.folder / "checkpoints").mkdir()
    shutil.copy(digits / "digits.pt", reader.folder / "checkpoints/best.pt")
    assert reader.follows(ROOT / "docs/index.md") == 6
    assert (reader.folder / "exported/model.onnx").is_file()
