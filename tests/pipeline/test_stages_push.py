"""The pushes, against real local servers through the real clients."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import ConflictError, StageError
from deploy_runner.local.servers import dry_run
from deploy_runner.testing import StageRun, run_stage
from tests.aws import TARGET, deploy
from tests.pipeline.test_stages_torch import stage


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import huggingface_hub.constants as constants

    with dry_run(tmp_path / "servers", services=("aws", "hub"), log=lambda line: None) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield


def publish(tmp_path: Path, data: bytes, **params: Any) -> StageRun:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(data)
    report = tmp_path / "accuracy.json"
    report.write_text(json.dumps({"accuracy": 98.5, "drop": 0.25, "samples": 540}))
    folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    return run_stage(
        stage("push.hub"), folder, inputs={"weights": weights, "reports": {"int8": report}},
        params={"repo": "digits", "license": "apache-2.0", **params}, target=TARGET,
    )  # fmt: skip


@pytest.mark.usefixtures("servers")
def test_a_hub_push_is_one_commit_and_only_changed_files_travel(tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    publish(tmp_path, b"one", tag="v1")
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"])
    assert len(api.list_repo_commits("local/digits")) == 2  # The Hub's own first one, and ours.
    assert sorted(api.list_repo_files("local/digits")) == ["README.md", "model.safetensors"]
    again = publish(tmp_path, b"one", tag="v1")
    assert again.context.converged
    assert len(api.list_repo_commits("local/digits")) == 2
    changed = publish(tmp_path, b"two")
    (call,) = json.loads(changed["transcript"].read_text())["calls"]
    assert sorted(call["files"]) == ["README.md", "model.safetensors"]
    with pytest.raises(ConflictError, match="the tag v1 of local/digits is on another commit"):
        publish(tmp_path, b"two", tag="v1")


@pytest.mark.usefixtures("servers")
def test_the_model_card_has_valid_metadata_with_the_measured_figures(tmp_path: Path) -> None:
    from huggingface_hub import HfApi, ModelCard

    publish(tmp_path, b"one")
    text = Path(
        HfApi(endpoint=os.environ["HF_ENDPOINT"]).hf_hub_download(
            "local/digits", "README.md", local_dir=tmp_path / "d"
        )
    ).read_text()
    card = ModelCard(text)
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.985)
    assert card.data.license == "apache-2.0"
    assert "| int8 | 98.50 % | 0.25 | 540 |" in text


def test_without_credentials_or_a_server_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in [n for n in os.environ if n.startswith("AWS_") and "METADATA" not in n]:
        monkeypatch.delenv(name)
    with pytest.raises(StageError, match="no AWS credentials are found"):
        deploy(tmp_path, 2)
    with pytest.raises(StageError, match="the Hub can't be reached"):
        publish(tmp_path, b"one", repo="me/digits")
