"""A push to a local Hub, for the tests of `push.hub`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.local.hub import LocalHub
from deploy_runner.registry import Registry
from deploy_runner.sdk import Stage
from deploy_runner.testing import StageRun, run_stage
from tests.conftest import ROOT

TARGET: dict[str, Any] = {"hub": {"namespace": "local"}}
REPO = "local/digits"


def push_hub() -> type[Stage]:
    """Return the stage type."""
    found = Registry(ROOT / "tests").get("push.hub")
    assert found is not None
    return found.cls


def use(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the real client of this process talk to a local Hub, and to nobody else."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_dry_run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    # The client asks the Hub for a list of coding agents, at the address that it was imported with.
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})


class Pusher:
    """Pushes files to the repository `digits`, through the client's own settings or another address."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self._runs = 0

    @property
    def api(self) -> Any:
        """Return the real client, with a token that may do everything."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.hub.url, token="hf_dry_run")

    def write(self, name: str, data: bytes) -> Path:
        """Write a file to push."""
        path = self.folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def push(
        self, weights: bytes = b"one", inputs: Mapping[str, Any] | None = None, **params: Any
    ) -> StageRun:
        """Run the stage in this process, with these weights and one report unless `inputs` says otherwise."""
        self._runs += 1
        report = self.write("accuracy.json", b'{"accuracy": 98.5, "drop": 0.25, "samples": 540}')
        given = {"weights": self.write("weights.safetensors", weights), "reports": {"int8": report}}
        known = {name: params.pop(name) for name in ("lineage", "digests") if name in params}
        return run_stage(
            push_hub(), self.folder / f"run{self._runs}", inputs=given if inputs is None else inputs,
            params={"repo": "digits", "license": "apache-2.0", **params}, target=TARGET, **known,
        )  # fmt: skip

    def commits(self, revision: str = "main") -> int:
        """Return how many commits there are beside the Hub's own first one."""
        return len(self.api.list_repo_commits(REPO, revision=revision)) - 1

    def content(self, path: str, revision: str = "main") -> bytes:
        """Return what a file there holds."""
        place = self.folder / f"taken{self._runs}"
        found = self.api.hf_hub_download(REPO, path, revision=revision, local_dir=place, force_download=True)
        return Path(found).read_bytes()


def calls(run: StageRun) -> list[str]:
    """Return the changes that a push has made."""
    return [call["call"] for call in json.loads(run["transcript"].read_text())["calls"]]
