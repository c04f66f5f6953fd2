"""The first hour of somebody who wants the same in GitHub Actions, with a cache that all machines share."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

from deploy_runner.local.servers import dry_run
from tests.actions import ActionsCache, Done, Job, run_job
from tests.conftest import ROOT
from tests.first_hour.newcomer import Newcomer
from tests.first_hour.pages import HOUR, commands, fragments, section
from tests.first_hour.people import SENTENCES, trained

pytestmark = pytest.mark.slow

INIT, STATUS, UPLOAD = commands(section(HOUR.read_text(), "GitHub Actions with a shared cache"))
FIVE = section((ROOT / "docs/shared-cache.md").read_text(), "In five minutes")
ADDRESS, KEYS = fragments(FIVE)
KEY = "9d1f6a7be3c05248f7a91d3e5b60c8a4"
PULL_REQUEST = {"event": "pull_request", "ref": "refs/pull/17/merge"}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """An AWS with the bucket of the page, and a Hub."""
    with dry_run(tmp_path / "servers", services=("aws", "hub"), log=lambda line: None) as env:
        s3 = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], aws_access_key_id="x",
                          aws_secret_access_key="y", region_name="us-east-1")  # fmt: skip
        s3.create_bucket(Bucket="your-cache")
        yield {**env, "AWS_REGION": "us-east-1"}


def states(done: Done) -> dict[str, str]:
    assert done.success, done.log
    return {id_: stage["state"] for id_, stage in json.loads(done.outputs["result"])["stages"].items()}


def test_the_hour(tmp_path: Path, programs: Path, servers: Mapping[str, str]) -> None:
    person = Newcomer(tmp_path / "films", programs)
    (person.folder / ".git").mkdir()
    (person.folder / ".gitignore").write_text("__pycache__/")
    trained(person.folder, "train.py", SENTENCES)
    person.types(INIT)
    assert (person.folder / ".gitignore").read_text() == "__pycache__/\n.deploy-runner/\n"
    aws = {name: value for name, value in servers.items() if not name.startswith("HF")}
    public = _sets_up_the_cache(person, aws)
    assert public

    workflow = person.folder / ".github/workflows/deploy.yml"
    assert "deploy-runner@" in workflow.read_text()
    shutil.copy(ROOT / "examples/github-workflow/shared-cache.yml", workflow)
    jobs = _Jobs(person, tmp_path, servers)
    assert set(states(jobs.runs(workflow, "dry-run", **PULL_REQUEST)).values()) == {"hit"}
    pipeline = person.folder / "pipeline.yaml"
    pipeline.write_text(pipeline.read_text().replace("# license:", "license:"))
    changed = states(jobs.runs(workflow, "dry-run", **PULL_REQUEST))
    assert {name for name, state in changed.items() if state == "ran"} == {"hub"}
    assert states(jobs.runs(workflow, "dry-run"))["hub"] == "ran"  # A pull request uploads nothing.
    assert states(jobs.runs(workflow, "dry-run"))["hub"] == "hit"
    live = states(jobs.runs(workflow, "production"))
    assert live.pop("hub") == "ran"
    assert set(live.values()) == {"hit"}
    assert states(jobs.runs(workflow, "production"))["hub"] == "converged"


def _sets_up_the_cache(person: Newcomer, aws: dict[str, str]) -> str:
    """Follow the page, a step too few each time; return the public key."""
    pipeline = person.folder / "pipeline.yaml"
    plain = pipeline.read_text()
    pipeline.write_text(plain + re.sub("^   ", "", ADDRESS, flags=re.MULTILINE))
    said = person._run(STATUS, aws)
    assert said.returncode == 2
    assert "(set cache.public_keys, or DEPLOY_RUNNER_CACHE_KEY)" in said.stdout
    short = person._run(STATUS, {**aws, "DEPLOY_RUNNER_CACHE_KEY": "short"})
    assert "(set 32 characters or more, e.g. `openssl rand -hex 32`)" in short.stdout
    secret = {"DEPLOY_RUNNER_CACHE_KEY": KEY}
    (public,) = set(
        re.findall(r"public key of this machine: (ed25519:\S+)", person.types(STATUS, **aws, **secret))
    )
    with_keys = re.sub("^   ", "", KEYS, flags=re.MULTILINE)
    pipeline.write_text(plain + re.sub(r"ed25519:[\w+/=]+", public, with_keys))
    person.types("deploy-runner validate")
    assert "5 ran" in person.types(UPLOAD, **aws, **secret)
    assert "5 hit" in person.types(UPLOAD, **aws, **secret)
    return str(public)


class _Jobs:
    """Runs jobs of the repository, each on a machine where all is installed and nothing else is."""

    def __init__(self, person: Newcomer, folder: Path, servers: Mapping[str, str]) -> None:
        self._person, self._folder = person, folder
        self._env = {**servers, **person.env}
        self._cache = ActionsCache(folder / "cache-of-actions")
        self._machines = 0

    def runs(self, workflow: Path, name: str, **given: Any) -> Done:
        self._machines += 1
        checkout = self._folder / f"machine-{self._machines}"
        shutil.copytree(self._person.folder, checkout, ignore=shutil.ignore_patterns(".deploy-runner"))
        secrets = {"DEPLOY_RUNNER_CACHE_KEY": KEY, "HF_TOKEN": "hf_dry_run"}
        done = run_job(workflow, name, Job(checkout, self._cache, secrets=secrets, env=self._env, **given))
        assert "Traceback" not in done.log
        assert self._cache.keys == []
        return done
