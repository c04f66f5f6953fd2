"""The first hour of somebody who classifies sentences: to the Hub, in an environment where nothing is installed yet."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy_runner.local.servers import dry_run
from tests.first_hour.newcomer import Newcomer, environment
from tests.first_hour.pages import HOUR, commands, section
from tests.first_hour.people import SENTENCES, trained

pytestmark = pytest.mark.slow

PART = section(HOUR.read_text(), "Sentences: the Hub")
INIT, RUN, CARD, LIVE, STATUS = commands(PART)


def test_the_hour(tmp_path: Path) -> None:
    """Only `pip install deploy-runner` was done: each message names the next extra, and none twice."""
    person = Newcomer(tmp_path / "films", environment(tmp_path / "own", "deploy-runner"))
    trained(person.folder, "train.py", SENTENCES)
    _begins(person)
    _mistypes(person)
    _publishes(person, tmp_path)


def _begins(person: Newcomer) -> None:
    assert "did you mean 'film-reviews'?" in person.errs("deploy-runner init film-review --goal hub")
    said, _ = person.follows(INIT, at_most=2)
    assert "film-reviews: BertForSequenceClassification of transformers, 2 labels" in said
    (person.folder / "other").mkdir()
    outside = person.errs("deploy-runner init film-reviews other")
    assert outside.endswith(" KiB with --copy, or name a folder that contains it)")
    _, installed = person.follows(RUN, at_most=5)
    assert "deploy-runner[onnx]" in installed
    assert {"deploy-runner[transformers]", "deploy-runner[torch]"} & set(installed)
    assert "5 stages: 5 hit" in person.types(RUN)
    assert "FAIL" not in person.types("deploy-runner doctor")


def _mistypes(person: Newcomer) -> None:
    person.types(CARD)
    card = (person.folder / "card.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "already exists" in person.errs(CARD)
    assert "did you mean 'hub'?" in person.errs("deploy-runner get hubb.card")
    file = person.folder / "pipeline.yaml"
    text = file.read_text()
    file.write_text(text.replace("# license: apache-2.0", "license: apache 2"))
    assert person.errs(RUN, exits=1).endswith("(check `license`, `tags` and `language`)")
    file.write_text(text.replace("# license: apache-2.0", "license: apache-2.0"))
    person.types(RUN)


def _publishes(person: Newcomer, tmp_path: Path) -> None:
    assert person.errs(LIVE, exits=1).endswith("(`hf auth login`, or export HF_TOKEN=…, with write access)")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x"}
    assert "can't be reached" in person.errs(STATUS, exits=1, **nowhere)
    with dry_run(tmp_path / "hub", services=("hub",), log=lambda line: None) as env:
        printed = person.types(LIVE, **env)
        assert "1 ran" in printed
        assert "1 converged" in person.types(LIVE, **env)
        person.types(STATUS, **env)
        files = _published(env, re.findall(r"repo (\S+),", printed)[0])
    assert {"config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json", "README.md"} <= files


def _published(env: Mapping[str, str], repo: str) -> set[str]:
    """Return the names of a repository's files on the Hub."""
    headers = {"Authorization": f"Bearer {env['HF_TOKEN']}"}
    asked = urllib.request.Request(f"{env['HF_ENDPOINT']}/api/models/{repo}", headers=headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return {row["rfilename"] for row in json.load(answer)["siblings"]}
