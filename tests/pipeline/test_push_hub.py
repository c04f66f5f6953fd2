"""`push.hub` against a local Hub, through the real client."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import ConflictError, StageError
from deploy_runner.local.hub import Account, LocalHub
from deploy_runner.sdk import Context
from deploy_runner.testing import run_stage
from tests.bundles import bundle, stage
from tests.conftest import ROOT
from tests.pipeline.hub import REPO, TARGET, Pusher, calls, use

ACCOUNTS = {
    "hf_dry_run": Account("local", "write", ("*",)),
    "hf_reader": Account("local", "read"),
    "hf_stranger": Account("stranger", "write"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", accounts=ACCOUNTS) as running:
        use(running, monkeypatch)
        yield running


@pytest.fixture
def pusher(hub: LocalHub, tmp_path: Path) -> Pusher:
    return Pusher(hub, tmp_path)


def add(path: str, data: bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path, data)


# What is pushed, and how often -------------------------------------------------------------------


def test_a_push_is_one_commit_and_only_changed_files_travel(pusher: Pusher) -> None:
    first = pusher.push(tag="v1")
    assert calls(first) == ["hub:create_repo", "hub:create_commit", "hub:create_tag"]
    assert pusher.commits() == 1
    assert sorted(pusher.api.list_repo_files(REPO)) == [
        "README.md",
        "deploy-runner.json",
        "model.safetensors",
    ]
    again = pusher.push(tag="v1")
    assert (calls(again), again.context.converged, pusher.commits()) == ([], True, 1)
    before = len(pusher.hub.requests)
    other = pusher.push(license="mit")
    assert sorted(json.loads(other["transcript"].read_text())["calls"][0]["files"]) == [
        "README.md", "deploy-runner.json",
    ]  # fmt: skip
    assert not [r for r in pusher.hub.requests[before:] if "/_lfs/" in r]
    with pytest.raises(ConflictError, match="the tag v1 of local/digits points to different content"):
        pusher.push(b"two", tag="v1")


def test_files_that_are_not_ours_any_more_are_deleted_in_the_same_commit(pusher: Pusher) -> None:
    files = {name: pusher.write(name, name.encode()) for name in ("a.txt", "docs/b.txt")}
    pusher.push(inputs={"files": files})
    pusher.api.create_commit(REPO, [add("theirs.txt", b"x")], commit_message="theirs")
    run = pusher.push(inputs={"files": {"a.txt": files["a.txt"]}})
    assert json.loads(run["transcript"].read_text())["calls"][0]["deleted"] == ["docs/b.txt"]
    assert sorted(pusher.api.list_repo_files(REPO)) == [
        "README.md", "a.txt", "deploy-runner.json", "theirs.txt",
    ]  # fmt: skip


def test_a_branch_is_made_where_there_is_none_and_a_tag_is_no_branch(pusher: Pusher) -> None:
    run = pusher.push(revision="next")
    assert calls(run) == ["hub:create_repo", "hub:create_branch", "hub:create_commit"]
    assert pusher.api.list_repo_files(REPO) == []
    assert pusher.content("model.safetensors", "next") == b"one"
    assert 'revision="next"' in pusher.content("README.md", "next").decode()
    pusher.api.create_tag(REPO, tag="v1", revision="next")
    with pytest.raises(StageError, match="v1 is a tag of local/digits, not a branch"):
        pusher.push(revision="v1")


def test_a_pull_request_is_found_again_updated_and_not_repeated_once_merged(pusher: Pusher) -> None:
    pusher.push(b"base")
    first = pusher.push(b"one", pull_request=True)
    assert calls(first) == ["hub:create_pull_request"]
    assert first.figures["revision"] == "refs/pr/1"
    assert calls(pusher.push(b"one", pull_request=True)) == []
    update = pusher.push(b"two", pull_request=True)
    assert (calls(update), update.figures["revision"]) == (["hub:create_pull_request"], "refs/pr/1")
    assert pusher.content("model.safetensors", "refs/pr/1") == b"two"
    assert pusher.content("model.safetensors") == b"base"
    pusher.api.merge_pull_request(REPO, 1)
    assert pusher.content("model.safetensors") == b"two"
    merged = pusher.push(b"two", pull_request=True)
    assert merged.context.converged
    assert pusher.push(b"two").context.converged  # A squash has no word of ours: the manifest has.
    assert calls(pusher.push(b"three")) == ["hub:create_commit"]


def test_what_somebody_else_has_changed_is_a_conflict(pusher: Pusher) -> None:
    pusher.push()
    pusher.api.create_commit(REPO, [add("README.md", b"# better\n")], commit_message="by hand")
    with pytest.raises(ConflictError, match=r"README\.md of local/digits@main was added or changed by "):
        pusher.push(b"two")
    assert pusher.content("README.md") == b"# better\n"
    assert pusher.content("model.safetensors") == b"one"
    assert calls(pusher.push(b"two", pull_request=True)) == ["hub:create_pull_request"]
    assert calls(pusher.push(b"two", overwrite=True)) == ["hub:create_commit"]
    assert pusher.content("model.safetensors") == b"two"


def test_a_repository_with_files_of_others_is_not_taken_over(pusher: Pusher) -> None:
    pusher.api.create_repo(REPO)
    pusher.api.create_commit(REPO, [add("model.safetensors", b"theirs")], commit_message="theirs")
    with pytest.raises(ConflictError, match=r"model\.safetensors of local/digits@main was added"):
        pusher.push()
    assert pusher.content("model.safetensors") == b"theirs"


def test_a_private_repository_is_made_and_a_public_one_is_refused(pusher: Pusher) -> None:
    pusher.push(private=True)
    assert pusher.api.repo_info(REPO).private
    pusher.api.create_repo("local/open")
    with pytest.raises(ConflictError, match="local/open already exists and is public"):
        pusher.push(repo="open", private=True)


# Status and rollback -----------------------------------------------------------------------------


def findings(pusher: Pusher, weights: bytes, **params: Any) -> dict[str, tuple[str, str]]:
    kind: Any = stage("push.hub")
    folder = pusher.folder / f"status{len(list(pusher.folder.iterdir()))}"
    folder.mkdir()
    ctx = Context(stage="hub", workdir=folder, target=TARGET)
    report = pusher.folder / "files/accuracy.json"
    inputs = kind.Inputs(weights=pusher.write("weights.safetensors", weights), reports={"int8": report})
    checked = kind.Params(repo="digits", license="apache-2.0", **params)
    return {f.what: (f.wanted, f.found) for f in kind().status(ctx, checked, inputs)}


def roll_back(pusher: Pusher, to: str = "", **params: Any) -> str:
    kind: Any = stage("push.hub")
    ctx = Context(stage="hub", workdir=pusher.folder, target=TARGET)
    return str(kind().rollback(ctx, kind.Params(repo="digits", license="apache-2.0", **params), to))


def test_status_tells_what_is_there_and_changes_nothing(pusher: Pusher) -> None:
    pusher.write("accuracy.json", b'{"accuracy": 98.5, "drop": 0.25, "samples": 540}')
    assert findings(pusher, b"one") == {"repository": (REPO, "missing")}
    pusher.push(tag="v1")
    before = pusher.commits()
    found = findings(pusher, b"one", tag="v1")
    assert all(wanted == there for wanted, there in found.values())
    found = findings(pusher, b"two", tag="v2", private=True)
    one, two = (hashlib.sha256(data).hexdigest()[:12] for data in (b"one", b"two"))
    assert found["model.safetensors"] == (two, one)
    assert found["visibility"] == ("private", "public")
    assert found["tag v2"][1] == "missing"
    assert findings(pusher, b"one", revision="next")["branch"] == ("next", "missing")
    pusher.push(b"two", pull_request=True)
    assert findings(pusher, b"two", pull_request=True)["pull request"] == ("merged", "refs/pr/1 is open")
    assert pusher.commits() == before


def test_rollback_brings_back_what_was_pushed_before_by_a_new_commit(pusher: Pusher) -> None:
    pusher.push(b"one")
    digest = str(pusher.push(b"two").figures["digest"])
    pusher.push(b"three")
    pusher.api.create_commit(REPO, [add("theirs.txt", b"x")], commit_message="theirs")
    sent = len([r for r in pusher.hub.requests if r.startswith("PUT")])
    said = roll_back(pusher)
    assert said.startswith(f"local/digits@main: {digest[:12]} of commit ")
    assert pusher.content("model.safetensors") == b"two"
    assert pusher.content("theirs.txt") == b"x"
    assert len([r for r in pusher.hub.requests if r.startswith("PUT")]) == sent
    assert pusher.push(b"two").context.converged
    assert roll_back(pusher, digest[:8]).endswith("is already current")
    with pytest.raises(StageError, match="feed was never pushed to local/digits"):
        roll_back(pusher, "feed")
    pusher.api.create_commit(REPO, [add("README.md", b"# better\n")], commit_message="by hand")
    with pytest.raises(ConflictError, match=r"README\.md of local/digits was changed by someone else"):
        roll_back(pusher, "")


# Layout and card ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("model", "onnx/model.onnx"), ("fp32", "onnx/model.onnx"), ("fp16", "onnx/model_fp16.onnx"),
        ("int8", "onnx/model_int8.onnx"), ("q8", "onnx/model_quantized.onnx"), ("q4f16", "onnx/model_q4f16.onnx"),
        ("int8[entropy]", "onnx/model_int8_entropy.onnx"), ("best", "onnx/model_best.onnx"),
    ],
)  # fmt: skip
def test_a_precision_has_the_name_by_which_its_users_look_for_it(
    pusher: Pusher, name: str, path: str
) -> None:
    model = pusher.write("m.onnx", b"onnx")
    pusher.push(inputs={"models": {name: model}})
    assert path in pusher.api.list_repo_files(REPO)


def test_two_models_for_one_path_are_refused(pusher: Pusher) -> None:
    model = pusher.write("m.onnx", b"onnx")
    with pytest.raises(
        StageError, match=r"the models 'q8' and 'quantized' have the same path onnx/model_quantized\.onnx"
    ):
        pusher.push(inputs={"models": {"q8": model, "quantized": model}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model as a bundle, its weights, and as ONNX."""
    folder = tmp_path_factory.mktemp("made")
    reference = bundle(folder, "cnn")["model"]
    exported = run_stage(
        stage("onnx.export"), folder / "onnx", inputs={"model": reference}, params={"opset": 13}
    )["model"]
    onnx = exported / "model.onnx" if exported.is_dir() else exported
    return {"bundle": reference, "weights": reference / "weights.safetensors", "onnx": onnx}


def test_every_snippet_of_the_card_runs_against_the_hub(pusher: Pusher, made: dict[str, Path]) -> None:
    inputs = {"weights": made["weights"], "models": {"fp32": made["onnx"]}, "reference": made["bundle"]}
    pusher.push(inputs=inputs, tag="v1")
    snippets = re.findall(r"```python\n(.*?)```", pusher.content("README.md").decode(), re.DOTALL)
    assert len(snippets) == 2
    shown = 'print(sorted(globals().get("weights", {})), [o.shape for o in globals().get("outputs", [])])'
    env = {**os.environ, "HF_HOME": str(pusher.folder / "home")}
    said = [
        subprocess.run(
            [sys.executable, "-c", code + shown], env=env, capture_output=True, text=True, check=True
        ).stdout
        for code in snippets
    ]
    assert said[0] == "[] [(1, 10)]\n"
    assert "weight" in said[1]


def test_external_data_is_named_as_the_model_says(pusher: Pusher, made: dict[str, Path]) -> None:
    import onnx
    import onnxruntime

    folder = pusher.folder / "external"
    folder.mkdir()
    onnx.save(onnx.load(made["onnx"]), folder / "model.onnx", save_as_external_data=True,
              location="model.onnx.data", size_threshold=256)  # fmt: skip
    pusher.push(inputs={"models": {"fp16": folder}, "reference": made["bundle"]})
    assert {"onnx/model_fp16.onnx", "onnx/model_fp16.onnx_data"} <= set(pusher.api.list_repo_files(REPO))
    place = pusher.api.snapshot_download(REPO, local_dir=pusher.folder / "taken")
    onnxruntime.InferenceSession(f"{place}/onnx/model_fp16.onnx")
    (code,) = re.findall(r"```python\n(.*?)```", pusher.content("README.md").decode(), re.DOTALL)
    env = {**os.environ, "HF_HOME": str(pusher.folder / "home")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_the_card_has_valid_metadata_with_the_measured_figures(pusher: Pusher) -> None:
    from huggingface_hub import ModelCard

    parity = {"max_abs": 1e-3, "max_rel": 0.1, "cosine": 0.9999, "argmax_agreement": 0.995, "samples": 64}
    reports = {
        "int8": pusher.write("accuracy.json", b'{"accuracy": 98.5, "drop": 0.25, "samples": 540}'),
        "int8-parity": pusher.write("parity.json", json.dumps(parity).encode()),
    }
    data = b"weights"
    digest = hashlib.sha256(data).hexdigest()
    lineage = {
        "weights": {"uses": "checkpoint.state_dict", "made": {"weights": [digest, "file", 7]},
                    "sources": {"checkpoint": "data/digits.pt"}, "inputs": {"checkpoint": ["ab" * 32, "file", 9]}},
    }  # fmt: skip
    run = pusher.push(
        inputs={"weights": pusher.write("w", data), "reports": reports}, language="no",
        pipeline_tag="image-classification", lineage=lineage,
    )  # fmt: skip
    text = pusher.content("README.md").decode()
    assert run["card"].read_text() == text
    card: Any = ModelCard(text).data
    assert (card.license, card.language, card.pipeline_tag) == (
        "apache-2.0", "no", "image-classification",
    )  # fmt: skip
    found = {result.metric_name: result.metric_value for result in card.eval_results or []}
    assert found == {"accuracy (int8)": 0.985, "agreement with the original (int8-parity)": 0.995}
    assert "| int8 | 98.50 % | 0.25 | 540 |" in text
    assert "| int8-parity | 0.001 | 0.999900 | 99.50% | 64 |" in text
    assert (
        f"| safetensors | `model.safetensors` | 7 | weights (`checkpoint.state_dict`) | `{digest}` |" in text
    )
    assert f"| `data/digits.pt` | weights | `{'ab' * 32}` |" in text


def test_the_commit_names_the_run_and_the_card_does_not(pusher: Pusher) -> None:
    for turn in range(2):
        run = run_stage(
            stage("push.hub"), pusher.folder / f"live{turn}", inputs={"weights": pusher.write("w", b"one")},
            params={"repo": "digits"}, target=TARGET, run=f"run-{turn}", commit=f"{turn}" * 40,
        )  # fmt: skip
    assert run.context.converged
    message = pusher.api.list_repo_commits(REPO)[0].message
    assert message == f"Stage: push.hub\nRun: run-0\nSource-Commit: {'0' * 40}"


# One sentence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "params", "said"),
    [
        pytest.param("hf_wrong", {}, "the Hub rejected this token: Invalid credentials", id="bad-token"),
        pytest.param("hf_reader", {}, "this token has no write access to local/digits: .*write token", id="read-only"),
        pytest.param("hf_stranger", {}, "this token has no write access to local/digits: .*namespace", id="no-rights"),
        pytest.param("hf_stranger", {"repo": "local/secret"}, "this token has no write access to local/secret",
                     id="private-of-others"),
        pytest.param("hf_dry_run", {"license": "apache2"},
                     'the Hub rejected the model card: .*"license" must be one of', id="licence"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_sentence(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, token: str, params: dict[str, Any], said: str
) -> None:
    pusher.api.create_repo("local/secret", private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StageError, match=said) as error:
        pusher.push(**params)
    assert "\n" not in str(error.value)


def test_no_token_no_room_and_no_hub_are_one_sentence(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    pusher.hub.quota_bytes = 2
    with pytest.raises(
        StageError, match="the Hub's storage limit prevents uploads to local/digits: .*storage limit reached"
    ):
        pusher.push(b"one")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StageError, match=r"the Hub at http://127\.0\.0\.1:9 can't be reached"):
        pusher.push()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(pusher.folder / "none"))
    with pytest.raises(StageError, match="no Hub token was found"):
        pusher.push()


@pytest.mark.slow
def test_a_gigabyte_streams_through_a_push(pusher: Pusher) -> None:
    code = """
import resource, sys
from pathlib import Path
from deploy_runner.testing import run_stage
from tests.pipeline.hub import TARGET, push_hub
folder, peaks = Path(sys.argv[1]), []
for name in ("small", "large"):
    run_stage(push_hub(), folder / f"run-{name}", inputs={"files": {"w.bin": folder / name}},
              params={"repo": name}, target=TARGET)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) // 1024)
"""
    for name, size in (("small", 1 << 20), ("large", 1 << 30)):
        with (pusher.folder / name).open("wb") as file:
            file.truncate(size)
    env = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(pusher.folder)],
        env=env, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) < 200, done.stdout  # MiB over a push of one.
