"""push.hub of a model that takes raw input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy_runner.errors import StageError
from deploy_runner.local.hub import Account, LocalHub
from tests.pipeline.hub import REPO, Pusher, use


def test_an_io_brings_its_files_labels_task_and_how_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = {"hf_dry_run": Account("local", "write", ("*",))}
    with LocalHub(tmp_path / "hub", accounts=accounts) as running:
        use(running, monkeypatch)
        _check(Pusher(running, tmp_path), tmp_path / "io")


def _check(pusher: Pusher, io: Path) -> None:
    io.mkdir()
    answer = {"kind": "classes", "labels": ["no", "yes"]}
    text = {
        "ids": "input_ids", "mask": "attention_mask", "types": None, "max_length": 32, "pad_token": "[PAD]",
        "padding_side": "right", "truncation_side": "right",
    }  # fmt: skip
    (io / "io.json").write_text(json.dumps({"text": text, "answer": answer}))
    (io / "tokenizer.json").write_text("{}")
    model = pusher.write("model.onnx", b"x")
    pusher.push(inputs={"models": {"fp32": model}, "io": io}, tag="v2")
    assert set(pusher.api.list_repo_files(REPO)) >= {"io/io.json", "io/tokenizer.json", "tokenizer.json"}
    settings = json.loads(pusher.content("tokenizer_config.json"))
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert (settings["model_max_length"], settings["pad_token"]) == (32, "[PAD]")
    assert json.loads(pusher.content("config.json"))["id2label"] == {"0": "no", "1": "yes"}
    card = pusher.content("README.md").decode()
    assert "pipeline_tag: text-classification\n" in card
    assert f"hf download {REPO} --revision v2 --local-dir model\n" in card
    assert "deploy-runner serve model/onnx/model.onnx --io model/io\n" in card
    assert "-H 'Content-Type: text/plain' -d 'a text'" in card
    assert "library_name" not in card
    (io / "io.json").unlink()
    with pytest.raises(StageError, match="`io` is no output of model.io"):
        pusher.push(inputs={"models": {"fp32": model}, "io": io})
