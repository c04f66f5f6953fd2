"""A repository that push.hub makes, loaded by the clients that people have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy_runner.local.hub import Account, LocalHub
from deploy_runner.testing import run_stage
from tests.bundles import bundle, stage
from tests.conftest import ROOT
from tests.models.hub import saved
from tests.pipeline.hub import Pusher, use
from tests.pipeline.hub_clients import (
    Javascript,
    in_python,
    install_javascript,
    install_optimum,
    small_tokenizer,
)

pytestmark = pytest.mark.slow

SENTENCES = ["A small model of sentences.", "naïve café 😀, twice", "HELLO World", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[LocalHub]:
    accounts = {"hf_dry_run": Account("local", "write", ("*",))}
    with LocalHub(folder / "hub", accounts=accounts) as running, pytest.MonkeyPatch.context() as patch:
        use(running, patch)
        yield running


@pytest.fixture(scope="module")
def pusher(hub: LocalHub, folder: Path) -> Pusher:
    return Pusher(hub, folder)


@pytest.fixture(scope="module")
def javascript(hub: LocalHub, folder: Path) -> Javascript:
    place = folder / "javascript"
    place.mkdir()
    install_javascript(place)
    return Javascript(place, hub.url)


@pytest.fixture(scope="module")
def optimum(folder: Path) -> Path:
    place = folder / "optimum"
    install_optimum(place)
    return place


def converted(folder: Path, source: Path) -> dict[str, Path]:
    """Convert a folder of save_pretrained to ONNX, of which the first has its weights beside it."""
    import onnx
    import transformers

    versions = {"transformers": transformers.__version__}
    bundle = run_stage(
        stage("model.transformers"), folder / "b", inputs={"folder": source}, packages=versions
    )["model"]
    whole = run_stage(stage("onnx.export"), folder / "fp32", inputs={"model": bundle})["model"] / "model.onnx"
    beside = folder / "beside"
    beside.mkdir()
    onnx.save(onnx.load(whole), beside / "model.onnx", save_as_external_data=True, location="model.onnx.data",
              size_threshold=1024)  # fmt: skip
    given = {"model": whole.parent, "reference": bundle}
    half = run_stage(stage("onnx.float16"), folder / "fp16", inputs=given, params={"atol": 0.1})["model"]
    q8 = run_stage(stage("onnx.quantize_dynamic"), folder / "q8", inputs=given)["model"]
    return {"reference": bundle, "fp32": beside, "fp16": half, "q8": q8, "whole": whole}


def models(made: dict[str, Path]) -> dict[str, Path]:
    return {
        "fp32": made["fp32"],
        "fp16": made["fp16"],
        "q8": made["q8"],
        "int8": made["q8"],
        "uint8": made["q8"],
        "q4": made["whole"],
    }


@pytest.fixture(scope="module")
def texts(pusher: Pusher, folder: Path) -> Any:
    """A classifier of sentences with its tokenizer, in the repository local/texts; the model itself."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
    from tokenizers.models import WordPiece
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    source = folder / "texts-source"
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator((ROOT / "README.md").read_text().splitlines(),
                                  trainers.WordPieceTrainer(vocab_size=500, special_tokens=special))  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]", mask_token="[MASK]", model_max_length=64).save_pretrained(source)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                        id2label={0: "bad", 1: "fair", 2: "good"}, label2id={"bad": 0, "fair": 1, "good": 2},
                        initializer_range=0.2)  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(source)
    made = converted(folder / "texts", source)
    pusher.push(
        inputs={"folder": source, "models": models(made), "reference": made["reference"]}, repo="texts",
        examples=SENTENCES[:2],
    )  # fmt: skip
    return source


@pytest.fixture(scope="module")
def pictures(pusher: Pusher, folder: Path) -> Any:
    """A classifier of pictures with its preprocessor, in the repository local/pictures."""
    from transformers import ViTImageProcessor

    source = folder / "pictures-source"
    saved("vit", source)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(source)
    made = converted(folder / "pictures", source)
    pusher.push(
        inputs={"folder": source, "models": models(made), "reference": made["reference"]}, repo="pictures"
    )
    return source


def expected(task: str, source: Path, inputs: Any) -> list[dict[str, float]]:
    """Return label → score of transformers' own pipeline."""
    from transformers import pipeline

    loaded: Any = pipeline(task, model=str(source), device="cpu")
    answers = loaded(inputs, top_k=None) if task.startswith("text") else loaded(inputs, top_k=5)
    return [{row["label"]: row["score"] for row in answer} for answer in answers]


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


def close(found: Any, wanted: list[dict[str, float]], within: float) -> None:
    for one, two in zip(found, wanted, strict=True):
        scores = {row["label"]: row["score"] for row in one}
        assert set(scores) == set(two)
        assert max(abs(scores[label] - two[label]) for label in two) <= within


@pytest.mark.parametrize(
    ("dtype", "within"),
    [("fp32", 1e-5), ("fp16", 1e-2), ("q8", 0.1), ("int8", 0.1), ("uint8", 0.1), ("q4", 1e-5)],
)
def test_transformers_js_answers_as_the_original(
    javascript: Javascript, texts: Path, pictures: Path, folder: Path, dtype: str, within: float
) -> None:
    wanted = expected("text-classification", texts, SENTENCES)
    found = javascript.pipeline("text-classification", "local/texts", SENTENCES, dtype=dtype)
    assert (
        max(abs(row["score"] - one[row["label"]]) for row, one in zip(found, wanted, strict=True)) <= within
    )
    image = str(picture(folder))
    found = javascript.pipeline("image-classification", "local/pictures", [image], dtype=dtype)
    close(found, expected("image-classification", pictures, [image]), within)


def test_transformers_loads_what_was_pushed(
    pusher: Pusher, texts: Path, pictures: Path, folder: Path
) -> None:
    code = f"""
import json
from transformers import pipeline
inputs = {{"text-classification": ("local/texts", {SENTENCES!r}, dict(top_k=None)),
          "image-classification": ("local/pictures", [{str(picture(folder))!r}], dict(top_k=5))}}
print(json.dumps({{t: pipeline(t, model=repo, device="cpu")(given, **more) for t, (repo, given, more) in inputs.items()}}))
"""
    found = json.loads(in_python(code, pusher.hub.url, folder / "home").splitlines()[-1])
    close(found["text-classification"], expected("text-classification", texts, SENTENCES), 1e-6)
    close(
        found["image-classification"],
        expected("image-classification", pictures, [str(picture(folder))]),
        1e-6,
    )


def test_optimum_runs_each_precision(
    optimum: Path, pusher: Pusher, texts: Path, pictures: Path, folder: Path
) -> None:
    code = f"""
import json
import numpy as np
from optimum.onnxruntime import ORTModelForImageClassification, ORTModelForSequenceClassification
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

def shown(model, logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    scores = exp / exp.sum(-1, keepdims=True)
    return [[dict(label=model.config.id2label[i], score=float(s)) for i, s in enumerate(row)] for row in scores]

answers = {{}}
tokenizer = AutoTokenizer.from_pretrained("local/texts")
given = tokenizer({SENTENCES!r}, padding=True, return_tensors="np")
for name in ("model.onnx", "model_quantized.onnx"):
    model = ORTModelForSequenceClassification.from_pretrained("local/texts", subfolder="onnx", file_name=name)
    answers[name] = shown(model, np.asarray(model(**given).logits))
model = ORTModelForSequenceClassification.from_pretrained("local/texts")
answers["default"] = shown(model, np.asarray(model(**given).logits))
model = ORTModelForImageClassification.from_pretrained("local/pictures")
given = AutoImageProcessor.from_pretrained("local/pictures", use_fast=False)(Image.open({str(picture(folder))!r}), return_tensors="np")
answers["picture"] = shown(model, np.asarray(model(**given).logits))
print(json.dumps(answers))
"""
    found = json.loads(
        in_python(code, pusher.hub.url, folder / "optimum-home", before=optimum).splitlines()[-1]
    )
    wanted = expected("text-classification", texts, SENTENCES)
    close(found["model.onnx"], wanted, 1e-5)
    close(found["default"], wanted, 1e-5)
    close(found["model_quantized.onnx"], wanted, 0.1)
    close(found["picture"], expected("image-classification", pictures, [str(picture(folder))]), 1e-4)


def counted(requests: list[str], repo: str) -> bool:
    """Say whether the Hub would count these requests as a download."""
    return any(
        re.fullmatch(rf"(GET|HEAD) /local/{repo}/resolve/[^/]+/config\.json", request) for request in requests
    )


def test_the_snippets_of_the_card_run(
    javascript: Javascript, pusher: Pusher, texts: Path, pictures: Path, folder: Path
) -> None:
    for repo in ("texts", "pictures"):
        path = pusher.api.hf_hub_download(f"local/{repo}", "README.md", local_dir=folder / f"card-{repo}")
        card = Path(path).read_text()
        snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(snippets) == 2
        for place, snippet in enumerate(snippets):
            before = len(pusher.hub.requests)
            in_python(snippet, pusher.hub.url, folder / f"home-{repo}-{place}")
            assert counted(pusher.hub.requests[before:], repo)
        (script,) = re.findall(r"```js\n(.*?)```", card, re.DOTALL)
        picture(folder).rename(javascript.folder / "picture.jpg")
        before = len(pusher.hub.requests)
        found = json.loads(javascript.run(script + "\nconsole.log(JSON.stringify(answer));").splitlines()[-1])
        assert counted(pusher.hub.requests[before:], repo)
        assert found[0]["label"]


def test_weights_in_parts_and_the_labels_of_tokens(
    javascript: Javascript, pusher: Pusher, folder: Path
) -> None:
    import transformers
    from transformers import DistilBertConfig, DistilBertForTokenClassification, pipeline

    source = folder / "parts-source"
    small_tokenizer(folder / "parts.json", source)
    torch.manual_seed(0)
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    config = DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=120, id2label=names, initializer_range=0.3
    )
    DistilBertForTokenClassification(config).save_pretrained(source, max_shard_size="20KB")
    versions = {"transformers": transformers.__version__}
    bundle = run_stage(
        stage("model.transformers"), folder / "parts-b", inputs={"folder": source}, packages=versions
    )["model"]
    onnx = run_stage(stage("onnx.export"), folder / "parts-o", inputs={"model": bundle})["model"]
    pusher.push(inputs={"folder": source, "models": {"fp32": onnx}, "reference": bundle}, repo="parts")
    text = "the film was good"
    loaded: Any = pipeline("token-classification", model=str(source))
    wanted = [(row["entity"], pytest.approx(float(row["score"]), abs=1e-5)) for row in loaded(text)]
    (found,) = javascript.pipeline("token-classification", "local/parts", [text], dtype="fp32")
    assert [(row["entity"], row["score"]) for row in found] == wanted
    code = f"""
import json
from transformers import pipeline
found = pipeline("token-classification", model="local/parts")({text!r})
print(json.dumps([[row["entity"], float(row["score"])] for row in found]))
"""
    said = json.loads(in_python(code, pusher.hub.url, folder / "parts-home").splitlines()[-1])
    assert [tuple(row) for row in said] == wanted


def test_an_io_is_enough_for_transformers_js_where_there_is_no_folder(
    javascript: Javascript, pusher: Pusher, folder: Path
) -> None:
    import transformers
    from transformers import BertConfig, BertForSequenceClassification, pipeline

    source = folder / "io-source"
    small_tokenizer(folder / "io.json", source)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=32, initializer_range=0.3)  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(source)
    versions = {"transformers": transformers.__version__}
    bundle = run_stage(
        stage("model.transformers"), folder / "io-b", inputs={"folder": source}, packages=versions
    )["model"]
    onnx = run_stage(stage("onnx.export"), folder / "io-o", inputs={"model": bundle})["model"]
    io = run_stage(stage("model.io"), folder / "io-i", inputs={"model": bundle, "folder": source})["io"]
    pusher.push(inputs={"models": {"q8": onnx}, "reference": bundle, "io": io}, repo="io")
    text = "a bad film, it was dull"
    loaded: Any = pipeline("text-classification", model=str(source))
    (wanted,) = loaded(text)
    (found,) = javascript.pipeline("text-classification", "local/io", [text], dtype="q8")
    assert found == {"label": wanted["label"], "score": pytest.approx(wanted["score"], abs=1e-5)}


OWN = """
import { AutoModel, Tensor } from "@huggingface/transformers";
const model = await AutoModel.from_pretrained("local/own", { dtype: "fp32", device: "cpu" });
const x = new Tensor("float32", Float32Array.from({ length: 128 }, (_, i) => (i % 17) / 16), [2, 1, 8, 8]);
const found = await model({ [model.config.inputs[0].name]: x });
console.log(JSON.stringify(found[model.config.outputs[0].name].tolist()));
"""


def test_transformers_js_runs_any_other_architecture_by_its_config(
    javascript: Javascript, pusher: Pusher, folder: Path
) -> None:
    import onnxruntime

    reference = bundle(folder / "own", "cnn")["model"]
    onnx = run_stage(stage("onnx.export"), folder / "own-o", inputs={"model": reference})["model"]
    pusher.push(inputs={"models": {"fp32": onnx}, "reference": reference}, repo="own")
    found = json.loads(javascript.run(OWN).splitlines()[-1])
    session = onnxruntime.InferenceSession(onnx / "model.onnx")
    x = (np.arange(128, dtype=np.float32) % 17 / 16).reshape(2, 1, 8, 8)
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
