"""A pull request reads the protected store and never writes it; what it makes reaches no other run."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Project

PULL_REQUEST = {"GITHUB_EVENT_NAME": "pull_request", "GITHUB_REF": "refs/pull/17/merge"}


def content(home: Path) -> dict[str, tuple[str, int]]:
    """Return every file of the protected namespace: digest and the time of its last change."""
    return {
        p.relative_to(home).as_posix(): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_ctime_ns)
        for p in home.rglob("*")
        if p.is_file() and "pull-requests" not in p.parts
    }


@pytest.fixture
def home(chain: Project) -> Path:
    """The store of a protected branch, which has run once."""
    chain.run()
    return chain.folder / ".deploy-runner"


@pytest.mark.parametrize("event", ["pull_request", "pull_request_target"])
def test_a_pull_request_uses_what_the_protected_branch_made_and_writes_elsewhere(
    chain: Project, home: Path, event: str
) -> None:
    before = content(home)
    environ = {**PULL_REQUEST, "GITHUB_EVENT_NAME": event}
    assert set(chain.states(**environ).values()) == {"hit"}
    assert chain.states("--set", "stages.b.with.times=3", **environ) == {"a": "hit", "b": "ran", "c": "ran"}
    assert chain.states("--set", "stages.b.with.times=3", **environ) == {"a": "hit", "b": "hit", "c": "hit"}
    assert chain.output("c", "--set", "stages.b.with.times=3", **environ) == b"HELLO!HELLO!HELLO!"
    chain.cli("cache", "gc", "--keep-runs", "1", **environ)
    chain.cli("cache", "verify", **environ)
    assert content(home) == before


def test_what_a_pull_request_made_is_made_again_by_the_protected_branch(chain: Project, home: Path) -> None:
    changed = ("--set", "stages.b.with.times=3")
    assert chain.states(*changed, **PULL_REQUEST)["b"] == "ran"
    assert chain.states(*changed) == {"a": "hit", "b": "ran", "c": "ran"}
    assert chain.states(*changed, **{**PULL_REQUEST, "GITHUB_REF": "refs/pull/18/merge"})["b"] == "hit"


@pytest.mark.parametrize("key", ["", "a key that both were given"])
def test_a_pull_requests_record_put_into_the_protected_namespace_is_refused(
    chain: Project, home: Path, key: str
) -> None:
    shared = {"DEPLOY_RUNNER_CACHE_KEY": key} if key else {}
    changed = ("--set", "stages.b.with.times=3")
    chain.run(**shared)
    chain.run(*changed, **PULL_REQUEST, **shared)
    for folder in ("actions", "cas"):
        shutil.copytree(home / "pull-requests/17" / folder, home / folder, dirs_exist_ok=True)
    result = chain.run(*changed, **shared)
    assert result["stages"]["a"]["state"] == "hit"
    assert result["stages"]["b"]["state"] == "ran"
    assert "was sealed with another key" in result["stages"]["b"]["reason"]


def test_a_damaged_protected_object_is_made_again_in_the_pull_requests_own_store(
    chain: Project, home: Path
) -> None:
    for path in chain.objects():
        path.chmod(0o644)
        path.write_bytes(b"x" * path.stat().st_size)
    before = content(home)
    # c makes the same bytes as b, which are sound again by then.
    assert chain.states(**PULL_REQUEST) == {"a": "healed", "b": "healed", "c": "hit"}
    assert set(chain.states(**PULL_REQUEST).values()) == {"hit"}
    assert content(home) == before


def test_a_protected_store_on_a_read_only_disk_is_read(chain: Project, home: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "protected"
    mounted.mkdir()
    bind = ["mount", "--bind", str(home), str(mounted)]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(mounted)], check=True)
        environ = {
            "DEPLOY_RUNNER_PROTECTED_HOME": str(mounted),
            "DEPLOY_RUNNER_HOME": str(tmp_path / "own"),
        }
        assert set(chain.states(**environ).values()) == {"hit"}
        assert chain.states("--set", "stages.b.with.times=3", **environ)["b"] == "ran"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
