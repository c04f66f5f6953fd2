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
from tests.conftest import ROOT
from tests.pipeline.test_stages_torch import stage

TARGET = {
    "aws": {
        "region": "us-east-1", "bucket": "dry-run-models", "create_bucket": True,
        "role_arn": "arn:aws:iam::123456789012:role/sagemaker", "image_uri": "image:latest",
    },
    "hub": {"namespace": "local"},
}  # fmt: skip


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import huggingface_hub.constants as constants

    with dry_run(tmp_path / "servers", services=("aws", "hub"), log=lambda line: None) as env:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield


def deploy(tmp_path: Path, data: bytes, **params: Any) -> StageRun:
    package = tmp_path / "model.tar.gz"
    package.write_bytes(data)
    folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    return run_stage(stage("push.sagemaker"), folder, inputs={"package": package},
                     params={"endpoint": "e", **params}, target=TARGET)  # fmt: skip


def calls(run: StageRun) -> list[str]:
    return [call["call"] for call in json.loads(run["transcript"].read_text())["calls"]]


@pytest.mark.usefixtures("servers")
def test_a_push_converges_and_an_update_moves_the_endpoint_last(tmp_path: Path) -> None:
    first = deploy(tmp_path, b"one")
    assert calls(first)[-1] == "sagemaker:CreateEndpoint"
    assert not first.context.converged
    again = deploy(tmp_path, b"one")
    assert calls(again) == []
    assert again.context.converged
    update = deploy(tmp_path, b"two")
    assert calls(update) == [
        "s3:PutObject", "sagemaker:CreateModel", "sagemaker:CreateEndpointConfig", "sagemaker:UpdateEndpoint",
    ]  # fmt: skip
    back = deploy(tmp_path, b"one")
    assert calls(back) == ["sagemaker:UpdateEndpoint"]


@pytest.mark.usefixtures("servers")
def test_an_object_that_is_something_else_is_a_conflict(tmp_path: Path) -> None:
    import boto3

    made = deploy(tmp_path, b"one")
    uri = json.loads(made["transcript"].read_text())["package"]
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    boto3.client("s3", region_name="us-east-1").put_object(
        Bucket=bucket, Key=key, Body=b"evil", ChecksumAlgorithm="SHA256"
    )
    with pytest.raises(ConflictError, match="holds something else"):
        deploy(tmp_path, b"one")


@pytest.mark.usefixtures("servers")
def test_what_is_not_set_and_what_is_refused_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there is no bucket other-bucket"):
        run_stage(stage("push.sagemaker"), tmp_path / "a", inputs={"package": ROOT / "README.md"},
                  params={"endpoint": "e", "bucket": "other-bucket"},
                  target={"aws": {**TARGET["aws"], "create_bucket": False}})  # fmt: skip
    with pytest.raises(StageError, match="role_arn is not set"):
        run_stage(stage("push.sagemaker"), tmp_path / "b", inputs={"package": ROOT / "README.md"},
                  params={"endpoint": "e", "bucket": "b"}, target={"aws": {"region": "us-east-1"}})  # fmt: skip


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
        deploy(tmp_path, b"one")
    with pytest.raises(StageError, match="the Hub can't be reached"):
        publish(tmp_path, b"one", repo="me/digits")
