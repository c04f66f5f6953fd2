"""`doctor` tries the shared cache as a run would, one line for each thing that it needs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Project
from tests.machines import SECRET, Share, public_key

PUBLIC = public_key()
PUSH = ("--set", "cache.push=true")


def reaching(share: Share) -> dict[str, str]:
    """Return the environment of a machine that has the secret."""
    return {"DEPLOY_RUNNER_REMOTE": share.url, "DEPLOY_RUNNER_CACHE_KEY": SECRET}


@pytest.fixture
def stalled() -> Iterator[dict[str, str]]:
    """The environment of an S3 that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "DEPLOY_RUNNER_REMOTE": "s3://bucket/prefix", "DEPLOY_RUNNER_CACHE_KEY": SECRET,
        }  # fmt: skip


def about_the_cache(project: Project, *args: str, exits: Any = 0, **env: str) -> list[str]:
    """Return what `doctor` says of the shared cache."""
    lines = project.cli("doctor", *args, exits=exits, **env).stdout.splitlines()
    return [line for line in lines if "shared cache" in line or "signing key" in line]


def test_a_cache_that_can_be_read_and_written_passes(chain: Project, share: Share) -> None:
    assert about_the_cache(chain, *PUSH, **reaching(share)) == [
        "ok   shared cache: installed",
        f"ok   shared cache can be read: {share.url}",
        f"ok   signing key: its public key is {PUBLIC}",
        f"ok   shared cache can be written: {share.url}",
    ]
    assert share.names() == []


def test_a_reader_needs_public_keys_and_no_secret(chain: Project, share: Share) -> None:
    said = about_the_cache(chain, exits=1, DEPLOY_RUNNER_REMOTE=share.url)
    assert said[1] == (
        f"FAIL shared cache can be read: nothing in {share.url} can be trusted: no public key is configured "
        "(set cache.public_keys, or DEPLOY_RUNNER_CACHE_KEY)"
    )
    trusted = f"cache.public_keys=['{PUBLIC}']"
    assert about_the_cache(chain, "--set", trusted, DEPLOY_RUNNER_REMOTE=share.url)[1:] == [
        f"ok   shared cache can be read: {share.url}",
        "ok   signing key: none needed: cache.push is not set, so nothing is uploaded",
    ]


def test_who_pushes_needs_the_secret(chain: Project, share: Share) -> None:
    trusted = f"cache.public_keys=['{PUBLIC}']"
    said = about_the_cache(chain, *PUSH, "--set", trusted, exits=1, DEPLOY_RUNNER_REMOTE=share.url)
    assert said[1].startswith("ok ")
    assert said[2].startswith("FAIL signing key: DEPLOY_RUNNER_CACHE_KEY is not set (set 32 characters")
    assert len(said) == 3


def test_a_cache_that_does_not_exist_is_named(chain: Project, share: Share) -> None:
    share.folder.rmdir()
    said = about_the_cache(chain, exits=1, **reaching(share))
    assert said[1].startswith(
        f"FAIL shared cache can be read: {share.url} can't be opened: the folder doesn't exist"
    )


def test_a_cache_that_never_answers_costs_one_time_limit(chain: Project, stalled: dict[str, str]) -> None:
    """What can't be read isn't tried to be written."""
    said = about_the_cache(chain, *PUSH, "--set", "cache.timeout=1s", exits=1, **stalled)
    assert "s3://bucket/prefix can't be read: it didn't answer in time (raise cache.timeout)" in said[1]
    assert len(said) == 3


def test_the_extra_is_named_if_it_is_missing(chain: Project, share: Share) -> None:
    without = (
        "import sys\n"
        "sys.modules['obstore'] = None\n"
        "from deploy_runner.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", without], cwd=chain.folder, capture_output=True, text=True, check=False,
        env={**os.environ, **chain.env, **reaching(share)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "FAIL shared cache: obstore is missing (pip install 'deploy-runner[remote]')" in done.stdout
    assert "can be read" not in done.stdout
