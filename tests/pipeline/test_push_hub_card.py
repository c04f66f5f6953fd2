"""What the Hub and its clients read of a repository that push.hub makes: config.json, the card's metadata, results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy_runner.errors import StageError
from deploy_runner.local.hub import Account, LocalHub
from tests.pipeline.hub import REPO, Pusher, use

BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "no", "1": "yes"},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(
        tmp_path_factory.mktemp("hub"), accounts={"hf_dry_run": Account("local", "write", ("*",))}
    ) as running:
        yield running


@pytest.fixture
def pusher(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pusher]:
    use(hub, monkeypatch)
    made = Pusher(hub, tmp_path)
    yield made
    if made.api.repo_exists(REPO):
        made.api.delete_repo(REPO)


def metadata(pusher: Pusher) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    card: Any = ModelCard(pusher.content("README.md").decode())
    return dict(card.data.to_dict())


def folder(pusher: Pusher, config: dict[str, Any], **files: str) -> Path:
    """Write a folder of save_pretrained."""
    for name, text in {"config.json": json.dumps(config), **files}.items():
        pusher.write(f"saved/{name}", text.encode())
    return pusher.folder / "files/saved"


def bundle(pusher: Pusher, **said: Any) -> Path:
    port = {"name": "x", "dtype": "float32", "shape": [2, 1, 8, 8], "dynamic": {"0": "batch"}, "batch": 0}
    described = {
        "factory": "m.py:f", "kwargs": {}, "inputs": [port],
        "outputs": [{**port, "name": "logits", "shape": [2, 3]}], "axes": [], **said,
    }  # fmt: skip
    pusher.write("bundle/bundle.json", json.dumps(described).encode())
    return pusher.folder / "files/bundle"


@pytest.mark.parametrize(
    ("config", "files", "library", "found"),
    [
        pytest.param(BERT, ["model.safetensors"], "transformers", [], id="transformers"),
        pytest.param(BERT, ["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "transformers", [], id="in parts"),
        pytest.param(BERT, ["onnx/model.onnx"], "transformers.js", ["onnx", "transformers.js"], id="transformers.js"),
        pytest.param(BERT, ["onnx/model.onnx", "model.safetensors"], "transformers", ["onnx", "transformers.js"], id="both"),
        pytest.param(BERT, ["modules.json", "model.safetensors"], "sentence-transformers", [], id="sentence-transformers"),
        pytest.param({"architecture": "resnet18", "pretrained_cfg": {}}, ["model.safetensors"], "timm", [], id="timm"),
        pytest.param({"width": 3}, ["model.safetensors", "onnx/model.onnx"], None, ["onnx"], id="one's own"),
        pytest.param({"model_type": "mine"}, ["onnx/model.onnx"], None, ["onnx"], id="no architecture"),
    ],
)  # fmt: skip
def test_the_library_is_one_of_the_hubs_list_or_none(
    pusher: Pusher, config: dict[str, Any], files: list[str], library: str | None, found: list[str]
) -> None:
    given = {name: pusher.write(name.replace("/", "-"), b"{}") for name in files}
    pusher.push(
        inputs={"files": {**given, "config.json": pusher.write("config.json", json.dumps(config).encode())}}
    )
    said = metadata(pusher)
    assert said.get("library_name") == library
    assert said["tags"] == sorted(["deploy-runner", *found])


def test_a_folder_of_save_pretrained_brings_what_from_pretrained_reads_and_nothing_of_the_training(
    pusher: Pusher,
) -> None:
    settings = {
        "tokenizer_class": "TokenizersBackend",
        "name_or_path": "/home/me/run",
        "special_tokens_map_file": "/home/me/s.json",
    }
    saved = folder(
        pusher, {**BERT, "_name_or_path": "/home/me/run"},
        **{"model.safetensors": "w", "tokenizer.json": "{}", "tokenizer_config.json": json.dumps(settings),
           "vocab.txt": "a", "trainer_state.json": "{}", "training_args.bin": "p", "optimizer.pt": "o", "pytorch_model.bin": "p",
           "README.md": "theirs", "checkpoint-1/model.safetensors": "old"},
    )  # fmt: skip
    pusher.push(inputs={"folder": saved})
    assert sorted(pusher.api.list_repo_files(REPO)) == [
        "README.md", "config.json", "deploy-runner.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt",
    ]  # fmt: skip
    assert json.loads(pusher.content("config.json")) == BERT
    settings = json.loads(pusher.content("tokenizer_config.json"))
    assert settings == {"tokenizer_class": "PreTrainedTokenizerFast"}  # Which transformers 4 knows, too.
    said = metadata(pusher)
    assert (said["library_name"], said["pipeline_tag"]) == ("transformers", "text-classification")
    (saved / "model.safetensors").rename(saved / "model-00001-of-00001.safetensors")
    with pytest.raises(StageError, match="`weights` and `folder` both have weights"):
        pusher.push(inputs={"folder": saved, "weights": pusher.write("w", b"w")})
    with pytest.raises(StageError, match=r"the folder has no config\.json"):
        pusher.push(inputs={"folder": pusher.write("empty/x", b"").parent})


def test_config_json_has_the_true_shapes_labels_and_what_transformers_js_needs(pusher: Pusher) -> None:
    io = pusher.write(
        "io/io.json",
        json.dumps({"picture": {}, "answer": {"kind": "classes", "labels": ["a", "b", "c"]}}).encode(),
    )
    pusher.push(inputs={"reference": bundle(pusher), "io": io.parent, "weights": pusher.write("w", b"w")})
    config = json.loads(pusher.content("config.json"))
    assert config == {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 3]}],
        "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "num_labels": 3,
    }  # fmt: skip
    assert metadata(pusher)["pipeline_tag"] == "image-classification"


def test_a_bundle_of_transformers_says_its_own_config(pusher: Pusher) -> None:
    kwargs = {
        "architecture": "BertForSequenceClassification",
        "config": {"model_type": "bert", "hidden_size": 32},
    }
    pusher.push(inputs={"reference": bundle(pusher, kwargs=kwargs), "weights": pusher.write("w", b"w")})
    config = json.loads(pusher.content("config.json"))
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert (config["model_type"], config["hidden_size"]) == ("bert", 32)
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert "num_labels" not in config


def test_a_mixins_config_is_what_its_class_saves_and_its_weights_have_its_names(pusher: Pusher) -> None:
    import torch
    from safetensors.torch import save

    reference = bundle(pusher, hub_config={"width": 8})
    pusher.write("bundle/weights.safetensors", save({"head.weight": torch.ones(2)}))
    weights = pusher.write("w.safetensors", save({"head.weight": torch.zeros(2)}))
    pusher.push(inputs={"reference": reference, "weights": weights})
    assert json.loads(pusher.content("config.json")) == {"width": 8}
    said = metadata(pusher)
    assert {"model_hub_mixin", "pytorch_model_hub_mixin"} <= set(said["tags"])
    pusher.push(inputs={"reference": bundle(pusher, hub_config={}), "weights": weights})
    assert json.loads(pusher.content("config.json")) == {}
    assert f'`CLASS.from_pretrained("{REPO}")`' in pusher.content("README.md").decode()
    wrong = pusher.write("w2.safetensors", save({"module.head.weight": torch.zeros(2)}))
    with pytest.raises(StageError, match=r"don't have the same names, e\.g\. head\.weight: .* untrained"):
        pusher.push(inputs={"reference": reference, "weights": wrong})


@pytest.mark.parametrize(
    ("params", "files", "expected"),
    [
        pytest.param({"pipeline_tag": "text-classification", "examples": ["Good!", "files/a.jpg"]}, [],
                     [{"text": "Good!"}, {"text": "files/a.jpg"}], id="texts"),
        pytest.param({"pipeline_tag": "image-classification", "examples": ["files/a.jpg", "https://e.org/b.jpg"]}, ["files/a.jpg"],
                     [{"src": "files/a.jpg"}, {"src": "https://e.org/b.jpg"}], id="files"),
    ],
)  # fmt: skip
def test_examples_are_the_widgets(
    pusher: Pusher, params: dict[str, Any], files: list[str], expected: list[dict[str, str]]
) -> None:
    given = {name: pusher.write(name, b"x") for name in ["a.txt", *files]}
    pusher.push(inputs={"files": given}, **params)
    assert metadata(pusher)["widget"] == expected


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"pipeline_tag": "image-classification", "examples": ["b.jpg"]}, r"the example 'b\.jpg' is not among the files.*a\.jpg"),
        ({"examples": ["a"]}, "`examples` have no form for the task None.*set `pipeline_tag`: feature-extraction"),
    ],
)  # fmt: skip
def test_an_example_that_the_page_cannot_show_is_refused(
    pusher: Pusher, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(StageError, match=said):
        pusher.push(inputs={"files": {"a.jpg": pusher.write("a.jpg", b"x")}}, **params)


def test_an_accuracy_is_on_a_leaderboard_where_a_benchmark_is_named(pusher: Pusher) -> None:
    from huggingface_hub import EvalResultEntry

    benchmark = {"dataset": "openai/gsm8k", "task": "gsm8k", "revision": "c0ffee", "notes": "int8"}
    pusher.push(benchmark=benchmark)
    info = pusher.api.model_info(REPO, expand=["evalResults"])
    assert info.eval_results == [
        EvalResultEntry("openai/gsm8k", "gsm8k", 98.5, dataset_revision="c0ffee", notes="int8")
    ]
    assert "model-index" in metadata(pusher)
    reports = {name: pusher.write(f"{name}.json", b'{"accuracy": 90}') for name in ("fp32", "int8")}
    weights = pusher.write("weights.safetensors", b"one")
    with pytest.raises(
        StageError, match="doesn't name its report, and those with an accuracy are: fp32, int8"
    ):
        pusher.push(inputs={"weights": weights, "reports": reports}, benchmark=benchmark)
    with pytest.raises(StageError, match="names the report 'q4'"):
        pusher.push(inputs={"weights": weights, "reports": reports}, benchmark={**benchmark, "report": "q4"})


def test_every_file_is_its_first_makers_also_of_a_folder_that_was_handed_on(pusher: Pusher) -> None:
    export = {
        "uses": "onnx.export",
        "inputs": {"model": ["b", "folder"]},
        "made": {"model": ["f", "folder", 1]},
    }
    int8 = {
        "uses": "onnx.quantize_static",
        "inputs": {"model": ["f", "folder"]},
        "made": {"model": ["q", "folder", 1]},
    }
    best = {
        "uses": "select",
        "inputs": {"candidates/int8": ["q", "folder"]},
        "made": {"model": ["q", "folder", 1]},
    }
    lineage = {
        id_: {**made, "sources": {}} for id_, made in (("best", best), ("fp32", export), ("int8", int8))
    }
    models = {name: pusher.write(f"{name}/model.onnx", name.encode()).parent for name in ("fp32", "best")}
    files = {"notes.txt": pusher.write("notes.txt", b"x")}
    pusher.push(
        inputs={"models": {"fp32": models["fp32"]}, "files": files, "reference": bundle(pusher)}, lineage=lineage,
        digests={"models/fp32": "f", "files/notes.txt": "0" * 64},
    )  # fmt: skip
    card = pusher.content("README.md").decode()
    rows = [row.split(" | ") for row in card.splitlines() if "` | " in row and row.count(" | ") == 4]
    assert {row[1]: row[3] for row in rows} == {
        "`config.json`": "push.hub (`push.hub`)", "`notes.txt`": "the project", "`onnx/model.onnx`": "fp32 (`onnx.export`)",
    }  # fmt: skip
    pusher.push(inputs={"models": {"best": models["best"]}}, lineage=lineage, digests={"models/best": "q"})
    assert "| int8 (`onnx.quantize_static`) |" in pusher.content("README.md").decode()
